"""From a number of bytes to the levels and zeros of every tensor of a model."""

from sqs_jax.budget.budget import compress_to_budget, rules_for
from sqs_jax.budget.budget_error import BudgetError
from sqs_jax.budget.distortion import predicted_loss
from sqs_jax.budget.solver import TOLERANCE, Fit, fit_bytes

__all__ = [
    "TOLERANCE",
    "BudgetError",
    "Fit",
    "compress_to_budget",
    "fit_bytes",
    "predicted_loss",
    "rules_for",
]
