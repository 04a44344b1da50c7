"""What holds for every test."""

from __future__ import annotations

import hypothesis

# An example may take as long as the rest of the machine makes it: whole tests have pytest-timeout's bound.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
