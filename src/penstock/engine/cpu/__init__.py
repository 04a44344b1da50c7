"""The CPU edge of the engine: the executor over torch, its KV pages, its sampler, and what the machine offers."""
