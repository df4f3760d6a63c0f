"""mergekit's YAML, read as it is and done with the rules of this package."""

from taskvec.edits.mergekit.reading import read

__all__ = ["read"]
