"""Whole edits of checkpoints: recipes, plans, model cards."""
