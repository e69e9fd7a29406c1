"""Cost model: memory, file size and time of an experiment, from shapes alone."""
