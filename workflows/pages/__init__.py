"""What people look at: the report of a sample run, its curves, and the model card."""
