"""``python -m penstock``: the same as the ``penstock`` command."""

from __future__ import annotations

import sys


def run() -> None:
    """The command, which Ctrl-C ends quietly also while its modules are still imported."""
    try:
        from penstock.cli.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    run()
