"""Comparison of methods with equal weights, examples, bytes, coder and evaluation."""
