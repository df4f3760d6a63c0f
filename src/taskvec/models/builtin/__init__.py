"""The model that comes with the package: a small CLIP-like dual encoder for the built-in world."""
