"""Recordings longer than the training recordings: encoded in windows, decoded in pieces."""

from vox.long.recognise import DEFAULT_LONGEST_SAMPLES, recognise_long

__all__ = ["DEFAULT_LONGEST_SAMPLES", "recognise_long"]
