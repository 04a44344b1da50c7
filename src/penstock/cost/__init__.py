"""What things cost: memory and time.  Pure formulas with their sources."""
