"""Importers of weights from other frameworks and from other runs."""

from experiments.importers.pretrained_weights import import_weights
from experiments.importers.state_dict import read_state_dict

__all__ = ["import_weights", "read_state_dict"]
