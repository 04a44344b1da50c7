"""``python -m penstock``: the same as the ``penstock`` command; child processes are started this way."""

from __future__ import annotations

from penstock.cli.main import main

main()
