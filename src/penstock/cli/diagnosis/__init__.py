"""What ``penstock doctor`` looks at: facts, the probes that gather them, and the findings they lead to."""
