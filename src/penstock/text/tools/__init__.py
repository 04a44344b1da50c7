"""Tool calls in the styles that models write them: one file per style, blind to one another, listed in registry.py."""
