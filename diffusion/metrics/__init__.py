"""How good samples are: as a whole, in their variety, by their labels, and whether they are copies."""
