"""Published peers: one file each, all ending in a compressed tree and the same file.

Methods that need no training are `compress(params, *, ..., rules) -> compressed`; those that train
are a `Transform`.
"""

from sqs_jax.baselines import (
    awq,
    codeq,
    deep_compression,
    dgms,
    gptq,
    obc,
    obc_allocation,
    round_to_nearest,
    sparse_decomposition,
    sparse_gpt,
    spqr,
    wanda,
)

__all__ = [
    "awq",
    "codeq",
    "deep_compression",
    "dgms",
    "gptq",
    "obc",
    "obc_allocation",
    "round_to_nearest",
    "sparse_decomposition",
    "sparse_gpt",
    "spqr",
    "wanda",
]
