"""One decoder for training and serving: its configuration, its table of ops, its weights both ways."""
