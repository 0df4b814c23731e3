"""N-gram language models: reading, scoring, and estimation from text."""
