"""Experiments whose results are losses and accuracies, not times."""
