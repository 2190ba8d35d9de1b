"""What can be said on the command line: the flags of each command, what it calls, and what people read at its end."""
