"""The gateway's edge: ASGI application, HTTP server, control socket."""
