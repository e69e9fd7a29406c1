"""How published results, and better ones, are run: python -m experiments.train --config=..."""
