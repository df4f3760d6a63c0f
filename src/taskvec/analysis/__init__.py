"""Explaining task vectors: what they do to each other, and how far theory holds."""
