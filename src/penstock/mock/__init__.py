"""An engine without a model: it speaks the engine protocol and answers as its script says."""
