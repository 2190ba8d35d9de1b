"""Who is champion: the gate that decides, the alias that says it, and the history that remembers."""
