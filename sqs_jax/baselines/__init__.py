"""Published peers: one file each, all ending in a compressed tree and the same file.

Methods that need no training are `compress(params, *, ..., rules) -> compressed`.
"""

from sqs_jax.baselines import (
    deep_compression,
    gptq,
    obc,
    round_to_nearest,
    sparse_gpt,
    wanda,
)

__all__ = ["deep_compression", "gptq", "obc", "round_to_nearest", "sparse_gpt", "wanda"]
