"""The built-in world: small pictures drawn by code, the tasks in it, and captions for pre-training."""
