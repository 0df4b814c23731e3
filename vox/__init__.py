"""Vox: train a speech recogniser on frozen WavLM features."""

__version__ = "0.1.0"
