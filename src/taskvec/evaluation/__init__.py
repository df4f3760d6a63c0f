"""Measuring edited models: metrics, points in either space, coefficient search."""
