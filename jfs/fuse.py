"""pyfuse3 adapter."""
