"""The layer probe: which of WavLM's layers hold the words, measured on a little of the corpus."""
