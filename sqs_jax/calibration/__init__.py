"""Codes for the outputs of a function, from the inputs of its linear layers."""

from sqs_jax.calibration.moments import InputMoments
from sqs_jax.calibration.recode import recode

__all__ = ["InputMoments", "recode"]
