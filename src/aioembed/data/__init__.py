"""The models that ship with the library."""
