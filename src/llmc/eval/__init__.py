"""Evaluation: what a compressed model lost, against the original on the same tokens."""
