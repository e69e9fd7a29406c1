"""Compression from inputs alone: no labels, no gradient steps, one block in memory."""
