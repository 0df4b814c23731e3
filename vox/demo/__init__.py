"""The demo: the whole pipeline on speech that it synthesizes itself."""
