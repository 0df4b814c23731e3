"""Dev results, and what follows from them: which checkpoint is best, the handoff, the mean of checkpoints."""
