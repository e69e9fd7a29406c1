"""Published weights of other frameworks as variables of the networks here."""

from experiments.importers.resnet import import_resnet
from experiments.importers.state_dict import read_state_dict

__all__ = ["import_resnet", "read_state_dict"]
