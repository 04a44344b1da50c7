"""The table of ops whose results do not depend on a row's company: kernels, ops, attention."""
