"""Load and its measurement: workloads, recorded traces, arrivals, the open-loop client, its report."""
