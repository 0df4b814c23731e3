"""The feature cache: shards, what they were made from, and the checks that a reader makes."""
