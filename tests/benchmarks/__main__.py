"""Run every benchmark, one after the other (make bench)."""

from tests.benchmarks import extraction, training

if __name__ == "__main__":
    extraction.main(standalone_mode=False)
    training.main(standalone_mode=False)
