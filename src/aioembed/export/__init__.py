"""Build `.pte` programs from torch modules (the `[export]` extra)."""
