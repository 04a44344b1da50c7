"""OpenAI's dialect: requests to the engine protocol, its events to OpenAI's bodies and streams."""
