"""Coefficients learned by gradient: one engine for every scope, box and signal."""
