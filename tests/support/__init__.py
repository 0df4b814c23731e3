"""What several test files use: corpora, models, runs, processes, and things that fail on demand."""
