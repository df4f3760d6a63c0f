"""taskvec inside the training programs that users already run."""
