"""What every listener of ours shares: a server on a socket, reading bodies within bounds, answering JSON and errors."""
