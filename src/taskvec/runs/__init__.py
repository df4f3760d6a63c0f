"""Experiment files and the runner that turns one into a folder of results."""
