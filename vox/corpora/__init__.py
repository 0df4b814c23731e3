"""Import other tools' corpora into Vox's manifest, and check corpora for problems."""
