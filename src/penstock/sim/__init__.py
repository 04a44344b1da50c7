"""The production machines in a simulated world: virtual time, modelled steps, recorded traces."""
