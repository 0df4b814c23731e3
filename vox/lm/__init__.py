"""N-gram language models: read, asked, and made from text."""
