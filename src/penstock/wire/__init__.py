"""What we say: requests, streams and errors.  Pure types and codecs; no I/O, no torch, no HTTP library."""
