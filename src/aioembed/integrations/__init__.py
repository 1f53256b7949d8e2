"""Bridges to frameworks; each needs its own extra."""
