"""Bridges to frameworks; each needs an extra of its own."""
