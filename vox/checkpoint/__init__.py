"""Checkpoints: folders that hold everything, written atomically.

files writes and loads one, integrity checks its checksums, series is about all those of a run.
"""

from vox.checkpoint.files import Checkpoint, load_recogniser, save_checkpoint
from vox.checkpoint.series import newest_checkpoint

__all__ = ["Checkpoint", "load_recogniser", "newest_checkpoint", "save_checkpoint"]
