"""File formats, tokenizer and forward pass of llama2.c, a small Llama.

Formats and names follow https://github.com/karpathy/llama2.c (export.py, version 0; run.c).
"""

import functools
import itertools
import math
import re
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

_BOS = 1
_BYTES = 3  # token of byte 0


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Read the weights and the number of heads of a version 0 file.

    The weights are float32 arrays by llama2.c's names. Every matrix of a layer is a leaf
    `[out, in]`. "tok_embeddings.weight" is also the classifier. The result has no rotary tables,
    which `forward` computes.

    Args:
        path: Path of the file.

    Returns:
        Dict of arrays, and the number of heads of the queries.

    Raises:
        ValueError: If the classifier is not shared.
    """
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, _ = struct.unpack_from("<7i", raw)
    if vocabulary < 0:
        raise ValueError(f"{path}: the classifier is not shared, which this reader does not know")
    floats = np.frombuffer(raw, "<f4", offset=28)
    kv_dim = dim // heads * kv_heads
    weights, start = {}, 0

    def take(name: str, *shape: int) -> None:
        nonlocal start
        end = start + math.prod(shape)
        weights[name] = floats[start:end].reshape(shape)
        start = end

    take("tok_embeddings.weight", vocabulary, dim)
    per_layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (dim,),
        "attention.wq": (dim, dim),
        "attention.wk": (kv_dim, dim),
        "attention.wv": (kv_dim, dim),
        "attention.wo": (dim, dim),
        "ffn_norm": (dim,),
        "feed_forward.w1": (hidden, dim),
        "feed_forward.w2": (dim, hidden),
        "feed_forward.w3": (hidden, dim),
    }
    for name, shape in per_layer.items():  # the file groups tensors by kind
        for layer in range(layers):
            take(f"layers.{layer}.{name}.weight", *shape)
    take("norm.weight", dim)
    return weights, heads


def read_vocabulary(path: Path) -> dict[bytes, tuple[int, float]]:
    """Read a tokenizer file; return (number, merge score) by the bytes of a token."""
    raw, offset = path.read_bytes(), 4
    vocabulary: dict[bytes, tuple[int, float]] = {}
    while offset < len(raw):
        score, length = struct.unpack_from("<fi", raw, offset)
        offset += 8 + length
        vocabulary[raw[offset - length : offset]] = len(vocabulary), score
    return vocabulary


def encode(text: str, vocabulary: dict[bytes, tuple[int, float]]) -> list[int]:
    """Tokenize like `encode` of run.c, without BOS.

    The best merge is first; of ties, the leftmost. No token has a space after its first character,
    so that no merge crosses a space. Words are tokenized separately, and cached.
    """

    @functools.cache
    def word_tokens(word: str) -> list[int]:
        pieces = [character.encode() for character in word]
        while True:
            pairs = [left + right for left, right in itertools.pairwise(pieces)]
            scores = [vocabulary[pair][1] if pair in vocabulary else -np.inf for pair in pairs]
            if max(scores, default=-np.inf) == -np.inf:
                break
            best = int(np.argmax(scores))
            pieces[best : best + 2] = [pairs[best]]
        tokens = []
        for piece in pieces:  # a character without a token becomes its UTF-8 bytes
            token = vocabulary.get(piece)
            tokens += [token[0]] if token else [_BYTES + byte for byte in piece]
        return tokens

    words = re.findall(r" [^ ]*", f" {text}")  # sentencepiece's dummy prefix
    return [token for word in words for token in word_tokens(word)]


def windows(tokens: list[int], count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the first count * length tokens into windows of inputs and targets.

    Every token is predicted once, from the earlier tokens of its window.

    Args:
        tokens: Tokens of a text.
        count: Number of windows.
        length: Tokens per window.

    Returns:
        Inputs, which begin with BOS, and targets; int32 `[count, length]`.
    """
    targets = np.array(tokens[: count * length], np.int32).reshape(count, length)
    return np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=_BOS), targets


@functools.partial(jax.jit, static_argnames="heads")
def forward(weights: dict[str, jax.Array], inputs: jax.Array, *, heads: int) -> jax.Array:
    """Compute logits of Llama 2 with grouped queries and a shared classifier.

    Args:
        weights: Weights from `read_weights`; the names determine the number of layers.
        inputs: Tokens, int32 `[B, T]`.
        heads: Number of heads of the queries.

    Returns:
        Logits `[B, T, vocabulary]`.

    References:
        Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models", arXiv:2307.09288.
    """
    embeddings = jnp.asarray(weights["tok_embeddings.weight"])
    x = embeddings[inputs]  # [B, T, D]
    layer = 0
    while (name := f"layers.{layer}") + ".attention.wq.weight" in weights:
        x += _attention(weights, name, x, heads)
        y = _norm(x, weights[f"{name}.ffn_norm.weight"])
        w1, w2, w3 = (weights[f"{name}.feed_forward.w{i}.weight"] for i in (1, 2, 3))
        x += (jax.nn.silu(y @ w1.T) * (y @ w3.T)) @ w2.T
        layer += 1
    return _norm(x, weights["norm.weight"]) @ embeddings.T


def _attention(weights: dict[str, jax.Array], name: str, x: jax.Array, heads: int) -> jax.Array:
    y = _norm(x, weights[f"{name}.attention_norm.weight"])
    wq, wk, wv, wo = (weights[f"{name}.attention.w{i}.weight"] for i in "qkvo")
    # [B, T, heads, head_dim]; keys and values may have fewer heads
    head_shape = (*x.shape[:2], -1, x.shape[-1] // heads)
    query, key, value = ((y @ w.T).reshape(head_shape) for w in (wq, wk, wv))
    mixed = jax.nn.dot_product_attention(_rotate(query), _rotate(key), value, is_causal=True)
    return mixed.reshape(x.shape) @ wo.T


def _rotate(x: jax.Array) -> jax.Array:
    """Apply rotary positions to neighboring pairs; [B, T, heads, head_dim]."""
    length, size = x.shape[1], x.shape[-1]
    angles = np.outer(np.arange(length), 10_000.0 ** -(np.arange(0, size, 2) / size))
    cos, sin = np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32)
    cos, sin = cos[:, None], sin[:, None]  # [T, 1, head_dim / 2]
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale
