"""How good pictures are: features made over Ray tasks, compared with the data's, and told with their intervals."""
