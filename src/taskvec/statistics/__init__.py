"""What a model makes of a task's inputs: Fisher information, second moments of layer inputs. No labels."""
