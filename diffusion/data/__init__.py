"""Verified shard sets: making them from images, reading them, and the order in which training sees them."""
