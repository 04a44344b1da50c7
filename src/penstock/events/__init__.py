"""What happened: one list of events, and the metrics as folds over it."""
