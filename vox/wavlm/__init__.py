"""WavLM, exact in padded batches, and the layer mix that turns it into features."""
