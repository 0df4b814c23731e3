"""Run every benchmark, one after the other (make bench)."""

from tests.benchmarks import extraction, reading, training, writing

if __name__ == "__main__":
    # Their own arguments, not this program's.
    for benchmark in (reading, writing, extraction, training):
        benchmark.main([], standalone_mode=False)
