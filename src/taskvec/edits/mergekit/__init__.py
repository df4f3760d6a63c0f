"""mergekit's YAML files, merged with the rules of this package."""

from taskvec.edits.mergekit.reading import read

__all__ = ["read"]
