"""What is used of transformers, which need not be installed."""

from taskvec.errors import MissingExtra

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    raise MissingExtra(
        "taskvec.integrations.transformers: transformers is not installed; pip install 'taskvec[trainer]'"
    ) from None

__all__ = ["Trainer", "TrainerCallback", "TrainerControl", "TrainerState", "TrainingArguments"]
