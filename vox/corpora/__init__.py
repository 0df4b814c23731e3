"""Corpora of other tools turned into Vox's manifest, and corpora read whole to find what is wrong."""
