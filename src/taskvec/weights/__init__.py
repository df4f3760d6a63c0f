"""Where weights live: opened lazily, read tensor by tensor, written safely. Knows nothing of task vectors."""

from taskvec.weights.blocks import TensorSpec
from taskvec.weights.lazy import Direction, Weights
from taskvec.weights.opening import WeightsLike, open_weights
from taskvec.weights.writer import save_weights

__all__ = ["Direction", "TensorSpec", "Weights", "WeightsLike", "open_weights", "save_weights"]
