"""A run's folder: the names of its files, whether its process lives, and where training stands."""
