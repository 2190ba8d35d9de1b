"""Ray, as far as we use it: one of our own or somebody else's, tasks on it, and our commands as its jobs."""
