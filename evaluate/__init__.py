"""Evaluation: error rates of a trained checkpoint on a split."""
