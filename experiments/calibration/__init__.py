"""Compression from inputs alone: no labels, no gradient steps, of a decoder one block in memory."""
