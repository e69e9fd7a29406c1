"""Weights of other frameworks, or of other runs, as variables of the networks here."""

from experiments.importers.state_dict import read_state_dict
from experiments.importers.variables import import_weights

__all__ = ["import_weights", "read_state_dict"]
