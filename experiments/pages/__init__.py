"""Pages that open in any browser: figures, tables, and the command that makes a run again."""
