"""What holds for every test."""

from __future__ import annotations

import os

import hypothesis

from penstock.engine.cpu.spinning import bound_spinning

# Several tests, and engines that they start, share the machine's cores.
bound_spinning(os.environ)

# An example may take as long as the rest of the machine makes it, and so may the making of one: whole tests have
# pytest-timeout's bound.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")
