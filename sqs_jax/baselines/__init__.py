"""Published compression methods, for comparison at equal file sizes.

A method without training is a function `compress(params, *, ..., rules)` that returns a compressed
tree. A method that trains is a `Transform`. `sqs_jax.save` writes the result of either.
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
