"""What runs a model: book-keeping, scheduler and loop, without torch; the edges are cpu/ and server/."""
