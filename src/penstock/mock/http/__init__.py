"""The mock engine's edge: sockets."""
