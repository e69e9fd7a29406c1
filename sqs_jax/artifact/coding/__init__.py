"""Entropy coding of a tensor's codes, with numpy and constriction.

`stream` chooses the shortest of four forms: fixed-length codes, asymmetric numeral systems (ANS)
with one frequency table, ANS with a table per context, or LZMA. docs/file_format.md specifies every
bit. The package knows nothing of models or files.
"""

from sqs_jax.artifact.coding.stream import (
    CHUNK,
    decode,
    encode,
    encode_all,
    entropy_bits,
    histogram,
    repetitive,
)

__all__ = ["CHUNK", "decode", "encode", "encode_all", "entropy_bits", "histogram", "repetitive"]
