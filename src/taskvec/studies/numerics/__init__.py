"""What studies compute, as functions of tensors and vectors: no file, no model, no state."""
