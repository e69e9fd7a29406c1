"""Export of trained networks to .sqs files."""

from experiments.export.run_files import deployed, describe_distributions, export, export_dense
from experiments.export.shipping import as_stored, codes_of, recipe, shipped

__all__ = [
    "as_stored",
    "codes_of",
    "deployed",
    "describe_distributions",
    "export",
    "export_dense",
    "recipe",
    "shipped",
]
