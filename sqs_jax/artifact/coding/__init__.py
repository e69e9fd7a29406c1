"""Codes of one tensor to bytes and back: knows numpy and constriction, nothing of models or files.

`stream` chooses the shortest of three forms: fixed-length codes, asymmetric numeral systems (ANS)
with one frequency table, or ANS with a table per context. docs/file_format.md states each of them
to the bit.
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
