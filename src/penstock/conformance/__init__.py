"""Whether an OpenAI-compatible endpoint keeps the contract: checks, each with what is true and its evidence."""
