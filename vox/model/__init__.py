"""The recogniser above WavLM: adapter, Zipformer encoder, CTC head and attention decoder."""
