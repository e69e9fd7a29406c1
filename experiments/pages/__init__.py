"""HTML pages of results: figures, tables, and the command that reproduces a run."""
