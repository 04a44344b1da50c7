"""The admin listener: health, metrics and state of a whole service."""
