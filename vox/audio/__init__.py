"""Recordings: their headers, their samples at 16 kHz, and all the ways in which a file can be wrong."""

from vox.audio.channels import channels_cancel
from vox.audio.read import AudioHeader, hash_recording, read_audio, read_channels, read_header

__all__ = [
    "AudioHeader",
    "channels_cancel",
    "hash_recording",
    "read_audio",
    "read_channels",
    "read_header",
]
