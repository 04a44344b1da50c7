"""One file per model family: its tensor names and what its config.json says differently."""
