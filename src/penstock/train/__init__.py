"""The training room: data, loop and stages that make a checkpoint the engine serves."""
