"""What a user writes and what the processes are told: settings and desired state."""
