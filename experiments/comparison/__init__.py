"""Methods beside each other: the same weights, examples, bytes, coder and evaluation."""
