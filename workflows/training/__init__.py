"""A training on Ray Train: its workers, their checkpoints, and what is heard of them while they work."""
