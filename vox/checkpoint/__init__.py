"""Checkpoints: folders that hold everything, written atomically.

files writes and loads one, integrity checks its checksums, series is about all those of a run.
"""
