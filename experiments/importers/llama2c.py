"""Checkpoints of karpathy/llama2.c, converted to Hugging Face's names and axes.

A checkpoint begins with seven int32: width, MLP width, blocks, heads, key-value heads, vocabulary
and context. A negative vocabulary means that the head is not tied to the embedding. Float32 arrays
follow, each of all blocks together.

A tokenizer begins with the int32 length of its longest piece. For each piece follow a float32
score, an int32 length and the bytes.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.checkpoints import LazyArray

_HEADER = struct.Struct("<7i")
_THETA = 10_000.0
_EPSILON = 1e-5


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, LazyArray]]:
    """Open a checkpoint without reading its weights.

    Args:
      path: The .bin file.

    Returns:
      (content of an equivalent config.json, weights by Hugging Face's names).

    Raises:
      ValueError: If the file is no checkpoint or is truncated.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise ValueError(f"{path}: {len(head)} bytes are no llama2.c checkpoint.")
    width, hidden, layers, heads, key_value_heads, vocabulary, context = _HEADER.unpack(head)
    tied, vocabulary = vocabulary > 0, abs(vocabulary)
    sizes = width, hidden, layers, heads, key_value_heads, vocabulary, context
    if min(sizes) < 1 or max(sizes) > 1 << 20 or width % heads or heads % key_value_heads:
        raise ValueError(
            f"{path} begins with {sizes}, which is no llama2.c checkpoint (version 0)."
        )
    head_width = width // heads
    key_value_width = key_value_heads * head_width

    tensors: dict[str, LazyArray] = {}
    offset = _HEADER.size

    def take(name: str, shape: tuple[int, ...], count: int = 1, interleaved_heads: int = 0) -> None:
        """Add the next arrays of the file to `tensors`, an array per block."""
        nonlocal offset
        for i in range(count):
            tensors[name.format(i)] = _lazy(path, offset, shape, interleaved_heads)
            offset += 4 * int(np.prod(shape))

    block = "model.layers.{}."
    take("model.embed_tokens.weight", (vocabulary, width))
    take(block + "input_layernorm.weight", (width,), layers)
    take(block + "self_attn.q_proj.weight", (width, width), layers, heads)
    take(block + "self_attn.k_proj.weight", (key_value_width, width), layers, key_value_heads)
    take(block + "self_attn.v_proj.weight", (key_value_width, width), layers)
    take(block + "self_attn.o_proj.weight", (width, width), layers)
    take(block + "post_attention_layernorm.weight", (width,), layers)
    take(block + "mlp.gate_proj.weight", (hidden, width), layers)
    take(block + "mlp.down_proj.weight", (width, hidden), layers)
    take(block + "mlp.up_proj.weight", (hidden, width), layers)
    take("model.norm.weight", (width,))
    offset += 4 * context * head_width  # cosines and sines, which the header determines
    if not tied:
        take("lm_head.weight", (vocabulary, width))
    size = path.stat().st_size
    if size != offset:
        raise ValueError(f"{path} has {size} bytes; its header asks for {offset}: copy it again.")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_width,
        "max_position_embeddings": context,
        "rms_norm_eps": _EPSILON,
        "rope_theta": _THETA,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    return config, tensors


def _lazy(path: Path, offset: int, shape: tuple[int, ...], interleaved_heads: int) -> LazyArray:
    """Return the array at an offset in bytes, with Hugging Face's rotary pairs."""

    def read() -> np.ndarray:
        array = np.fromfile(path, "<f4", int(np.prod(shape)), offset=offset).reshape(shape)
        if interleaved_heads:
            # A rotary pair is rows 2i and 2i + 1 of a head in llama2.c, and rows i and
            # i + head_width / 2 in Hugging Face.
            array = array.reshape(interleaved_heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        return array

    return LazyArray(shape, np.float32, read)


def read_tokenizer(path: Path) -> Any:
    """Read a tokenizer.

    Args:
      path: The .bin file.

    Returns:
      tokenizers.Tokenizer: SentencePiece BPE that begins each text with <s>.

    Raises:
      ValueError: If the file is no tokenizer or is truncated.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors

    data = path.read_bytes()
    pieces: list[str] = []
    scores: list[float] = []
    offset = 4
    while offset < len(data):
        if offset + 8 > len(data):
            raise ValueError(f"{path}: {len(data)} bytes end within a piece; copy it again.")
        score, length = struct.unpack_from("<fi", data, offset)
        offset += 8 + length
        if length < 0 or offset > len(data):
            raise ValueError(f"{path} is no tokenizer of llama2.c, or cut short; copy it again.")
        piece = data[offset - length : offset].decode("utf-8", "strict")
        pieces.append(piece.strip("\n") if len(pieces) in (1, 2) else piece.replace(" ", "▁"))
        scores.append(score)
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [
        (i, piece[:cut], piece[cut:])
        for i, piece in enumerate(pieces)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    merges.sort(key=lambda merge: -scores[merge[0]])
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [(left, right) for _, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex("^(?=.)"), "▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer
