"""What we decide: pure functions ``(view, rules, memory, now) -> verdict with its why``.  No clock, no I/O."""
