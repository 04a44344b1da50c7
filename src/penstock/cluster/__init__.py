"""Desired and observed state: the controller that keeps the one at the other."""
