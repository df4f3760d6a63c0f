"""What studies compute, as functions of tensors: no file, no model of ours, no state."""
