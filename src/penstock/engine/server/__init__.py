"""The engine's edge to HTTP: boot, the step thread, text streams, the engine protocol on a Unix socket."""
