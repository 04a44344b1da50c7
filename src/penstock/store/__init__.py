"""What is remembered: desired state, and where a model comes from."""
