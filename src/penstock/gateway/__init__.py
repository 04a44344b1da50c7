"""The gateway: one visible pipeline from a data request to the engines and back.  ``http/`` is its edge."""
