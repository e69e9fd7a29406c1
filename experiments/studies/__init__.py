"""Studies of the theory and of related work, behind a command each."""
