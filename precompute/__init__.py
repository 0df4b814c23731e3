"""Phase 1: run WavLM over a corpus once and cache its features."""
