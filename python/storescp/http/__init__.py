"""The HTTP endpoints: whether it lives, whether it is ready, and its metrics."""
