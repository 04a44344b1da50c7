"""The fast table of ops and the step over it: compiled kernels for CPUs with AVX-512 and bfloat16."""
