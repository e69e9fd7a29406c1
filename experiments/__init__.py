"""Commands that reproduce the results; start with python -m experiments.train."""
