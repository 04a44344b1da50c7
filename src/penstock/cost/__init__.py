"""What things cost: memory, time, money.  Pure formulas with their sources."""
