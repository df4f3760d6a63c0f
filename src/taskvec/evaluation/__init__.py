"""Measuring edited models: metrics, coefficient search, and the protocols of the field."""
