"""sqs compress, decompress: any checkpoint to one small file, and back to safetensors."""

import argparse
import math
import os
import re
from typing import Any

import sqs_jax
from sqs_jax.artifact.atomic import replacing_folder
from sqs_jax.checkpoints import (
    Checkpoint,
    copy_other_files,
    flat_names,
    open_checkpoint,
    write_safetensors,
    write_safetensors_folder,
)
from sqs_jax.cli.common import (
    MODEL,
    add_command,
    check_output,
    lazy_tensors,
    open_sqs,
    print_json,
    progress,
    tracked,
    workers,
)

__all__ = ["add_compress", "add_decompress"]

_PASSES = 4  # over the weights, about: one to sort them, then one for each file that is tried
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def add_compress(commands: Any) -> None:
    """Add `sqs compress`."""
    help = "compress a checkpoint to a given size, without data and without the model's code"
    example = "sqs compress model.safetensors -o model.sqs --target-ratio 20"
    parser = add_command(commands, "compress", _compress, help, example)
    parser.add_argument(
        "input",
        help="safetensors, .npz, Flax msgpack, an orbax folder, or a Hugging Face folder",
    )
    parser.add_argument(
        "-o", "--output", required=True, help="the sqs file (a folder for a folder)"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--target-ratio",
        type=float,
        metavar="R",
        help="the file is R times smaller than the weights",
    )
    target.add_argument(
        "--target-bytes",
        type=_bytes,
        metavar="N",
        help="the file's size: 33500, 33.5kB, 400MB, 1GiB",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="REGEX",
        help="leave tensors whose whole name matches as they are; may be given again",
    )
    parser.add_argument(
        "--dense-dtype",
        metavar="DTYPE",
        help="round what is not compressed: float16, bfloat16, float8_e4m3fn, ...",
    )
    parser.add_argument(
        "--sensitivity",
        metavar="FILE",
        help="a checkpoint of the same names: what an error of each weight costs",
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9.]+) *([a-zA-Z]*)", text)
    try:
        if found is not None:
            return math.floor(float(found[1]) * _UNITS[found[2].upper()])
    except (KeyError, ValueError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no size; write 33500, 33.5kB, 400MB or 1GiB")


def _compress(args: argparse.Namespace) -> int:
    source = open_checkpoint(args.input)
    check_output(args.output, args.input)
    rules = [sqs_jax.Rule(pattern=pattern, components=None) for pattern in args.keep]
    metadata = _metadata(args, source)
    sensitivity = open_checkpoint(args.sensitivity).tree if args.sensitivity else None
    options = {"dense_dtype": args.dense_dtype, "metadata": metadata}
    tensors = flat_names(source.tree).values()
    original = sum(tensor.nbytes for tensor in tensors)
    with progress("compressing", _PASSES * original) as advance:
        compressed = sqs_jax.compress_to_budget(
            tracked(source.tree, advance),
            target_bytes=args.target_bytes,
            target_ratio=args.target_ratio,
            sensitivity=sensitivity,
            rules=[*rules, *sqs_jax.DEFAULT_RULES],
            **options,
        )
        advance(_PASSES * original)
    options["workers"] = workers(sum(tensor.size for tensor in tensors))
    if source.kind == "huggingface":
        with replacing_folder(args.output) as folder:
            skipped = copy_other_files(args.input, folder)
            written = sqs_jax.save(os.path.join(folder, MODEL), compressed, **options)
    else:
        skipped = []
        written = sqs_jax.save(args.output, compressed, **options)
    result = {"output": args.output, "bytes": written, "original_bytes": original}
    result["ratio"] = original / written
    if args.json:
        print_json({**result, "not_copied": skipped})
    else:
        print(
            f"{args.output}: {written:,} bytes, {original / written:.2f}x smaller than the weights"
        )
        if skipped:
            print(f"not copied: {', '.join(skipped)}")
    return 0


def _metadata(args: argparse.Namespace, source: Checkpoint) -> dict[str, Any]:
    """Say in the file what it was made from, and how; nothing that changes from run to run."""
    name = os.path.basename(os.path.normpath(args.input))
    recipe = {
        "target_bytes": args.target_bytes,
        "target_ratio": args.target_ratio,
        "keep": args.keep,
        "dense_dtype": args.dense_dtype,
        "sensitivity": args.sensitivity and os.path.basename(args.sensitivity),
    }
    return {
        "provenance": {
            "sqs_jax": sqs_jax.__version__,
            "source": name,
            "kind": source.kind,
            "bytes": source.nbytes,
            "metadata": source.metadata,
        },
        "recipe": {key: value for key, value in recipe.items() if value},
    }


def add_decompress(commands: Any) -> None:
    """Add `sqs decompress`."""
    help = "write the weights of a file as safetensors, with their names, shapes and dtypes"
    example = "sqs decompress model.sqs -o model.safetensors"
    parser = add_command(commands, "decompress", _decompress, help, example)
    parser.add_argument("file", help="an sqs file, or a folder that compress made")
    parser.add_argument(
        "-o", "--output", required=True, help="a .safetensors file; a folder for a folder"
    )


def _decompress(args: argparse.Namespace) -> int:
    with open_sqs(args.file) as file:
        check_output(args.output, args.file)
        tensors = lazy_tensors(file)
        provenance = file.metadata.get("provenance")
        provenance = provenance if isinstance(provenance, dict) else {}
        kept = provenance.get("metadata")
        skipped: list[str] = []
        with progress(
            "decompressing", sum(tensor.nbytes for tensor in tensors.values())
        ) as advance:
            read = tracked(tensors, advance)
            if os.path.isdir(args.file) and provenance.get("kind") == "huggingface":
                written, skipped = write_safetensors_folder(
                    args.output, read, kept or {}, others=args.file
                )
            else:
                plain = (kept or None) if provenance.get("kind") == "safetensors" else None
                written = write_safetensors(args.output, read, plain)
    result = {"output": args.output, "bytes": written, "tensors": len(tensors)}
    if args.json:
        print_json({**result, "not_copied": skipped})
    else:
        print(f"{args.output}: {len(tensors)} tensors, {written:,} bytes")
    return 0
