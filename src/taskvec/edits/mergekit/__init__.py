"""mergekit's YAML files, merged with the rules of this package."""

from taskvec.edits.mergekit.others import describe_other
from taskvec.edits.mergekit.reading import read
from taskvec.edits.mergekit.several import read_several

__all__ = ["describe_other", "read", "read_several"]
