"""What our listeners share: serving on a socket, reading bodies within bounds, answering JSON and errors."""
