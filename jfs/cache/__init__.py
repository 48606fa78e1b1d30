"""Content-addressed block cache on disk."""
