"""Settings of what is learned after a merge. Reading this file imports no torch."""

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from taskvec.config import Config


class SurgerySettings(Config, use_attribute_docstrings=True):
    """Representation surgery: a small map of a merged model's features, for each task."""

    rank: PositiveInt = 16
    """Dimensions between the two matrices of the map; each task adds 2 x rank x d numbers."""
    steps: NonNegativeInt = 1000
    """Updates a task; 0 leaves the merged model as it is."""
    batch: PositiveInt = 16
    """Examples a step."""
    lr: PositiveFloat = 1e-3
    """Of Adam."""
