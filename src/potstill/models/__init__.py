"""Models of our own, and converters from other libraries' checkpoints."""
