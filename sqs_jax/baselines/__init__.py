"""Published peers: one file each, all ending in a compressed tree and the same file.

Methods that need no training are `compress(params, *, ..., rules) -> compressed`.
"""

from sqs_jax.baselines import gptq, round_to_nearest

__all__ = ["gptq", "round_to_nearest"]
