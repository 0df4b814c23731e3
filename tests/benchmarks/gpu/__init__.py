"""What a card is asked in its first minutes: `python -m tests.benchmarks.gpu` (`--device cpu` to try it)."""
