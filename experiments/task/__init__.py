"""A learning task: network, data, starting weights, and the evaluation of its files."""
