"""How the gateway speaks to engines: the engine protocol over HTTP."""
