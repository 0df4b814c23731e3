"""The commands that need the library alone; `vox.cli` imports each when it is called."""
