"""Data sets: read from disk into arrays."""
