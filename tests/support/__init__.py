"""Shared by several test files: corpora, models, runs, processes, and failures on demand."""
