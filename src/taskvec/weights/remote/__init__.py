"""Weights in buckets, behind web servers and on the hub, read in place: headers and rows, nothing else."""
