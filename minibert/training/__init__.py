"""Optimizer, precision, the loop and the run's folder."""
