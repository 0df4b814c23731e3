"""Batches of training data: which utterances, in which order, from where."""
