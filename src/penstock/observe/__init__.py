"""What we know from what happened: folds of events, and their exposition to Prometheus."""
