"""sqs decompress: write the dense weights of an sqs file as a checkpoint."""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from sqs_jax.artifact.atomic import replacing_folder
from sqs_jax.artifact.text_table import printable
from sqs_jax.checkpoints import (
    copy_other_files,
    write_msgpack,
    write_npz,
    write_safetensors,
    write_safetensors_folder,
)
from sqs_jax.checkpoints.other_files import list_other_files
from sqs_jax.checkpoints.weight_files import holds_tensors, is_plain
from sqs_jax.cli.common import (
    MODEL,
    add_command,
    counted,
    lazy_tensors,
    lazy_tree,
    open_sqs,
    print_json,
)
from sqs_jax.cli.console import say
from sqs_jax.cli.outputs import check_output
from sqs_jax.progress import progress, tracked

__all__ = ["add_decompress"]

_FORMATS = (".safetensors", ".npz", ".msgpack")


def add_decompress(commands: Any) -> None:
    """Add `sqs decompress`."""
    help = "write the weights of a file with their names, shapes and dtypes"
    example = "sqs decompress model.sqs -o model.safetensors"
    parser = add_command(commands, "decompress", _decompress, help, example)
    parser.add_argument("file", help="an sqs file, or a folder written by compress")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        help="a .safetensors, .npz or .msgpack file; a folder for weights of a Hugging Face folder",
    )


def _decompress(args: argparse.Namespace) -> int:
    with open_sqs(args.file) as file:
        provenance = file.metadata.get("provenance")
        provenance = provenance if isinstance(provenance, dict) else {}
        layout = provenance.get("metadata")
        layout = layout if isinstance(layout, dict) else {}
        format = _format(args.output, provenance.get("kind") == "huggingface")
        tensors = lazy_tensors(file)
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        others = args.file if format == "folder" and os.path.isdir(args.file) else None
        skipped = []
        if others is not None:
            listed = list_other_files(others, {MODEL})
            nbytes, skipped = nbytes + listed.nbytes, listed.left_out
        elif format == "folder":
            skipped = ["the files beside the weights (give the compressed folder for them too)"]
        check_output(args.output, [args.file], nbytes=nbytes, folder=format == "folder")
        with progress("decompressing", nbytes, percent=True, keep=True) as advance:
            if format == "folder" and "msgpack" in layout:
                read = tracked(lazy_tree(file), advance)
                written = _write_flax_folder(
                    args.output, file.path, read, layout["msgpack"], others
                )
            elif format == "folder":
                read = tracked(tensors, advance)
                written, _ = write_safetensors_folder(args.output, read, layout, others=others)
            elif format == ".npz":
                written = write_npz(args.output, tracked(tensors, advance))
            elif format == ".msgpack":
                written = write_msgpack(
                    args.output,
                    tracked(lazy_tree(file), advance),
                    state_dict=provenance.get("kind") != "msgpack",
                )
            else:
                strings = _strings(provenance.get("kind"), layout)
                written = write_safetensors(args.output, tracked(tensors, advance), strings)
        skipped += [f"attachment {name}" for name in file.attachments]
    result = {"output": args.output, "bytes": written, "tensors": len(tensors)}
    if args.json:
        print_json({**result, "not_copied": skipped})
        return 0
    say(printable(f"{args.output}: {counted(len(tensors), 'tensor')}, {written:,} bytes"))
    if skipped:
        say(printable(f"not copied: {', '.join(skipped)}"))
    return 0


def _format(output: str, was_folder: bool) -> str:
    """Return the extension that decides the format, or "folder"."""
    extension = os.path.splitext(output)[1].lower()
    if extension in _FORMATS:
        return extension
    if was_folder and not holds_tensors(os.path.basename(os.path.normpath(output))):
        return "folder"
    if os.path.isdir(output):
        raise ValueError(f"{output}: is a folder; give the name of a file in it")
    raise ValueError(
        f"{output}: the extension does not name a format to write; give a name that ends in "
        f"{', '.join(_FORMATS)}"
    )


def _strings(kind: Any, layout: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the metadata of a safetensors file, or the common metadata of all shards.

    Args:
        kind: Format of the original checkpoint.
        layout: Metadata of the original checkpoint.

    Returns:
        Strings for the header; None if there are none, or the original has another format.
    """
    if kind == "safetensors":
        return dict(layout)
    shards = layout.get("shards")
    if kind != "huggingface" or not isinstance(shards, dict):
        return None
    metadata = [strings for strings in shards.values() if isinstance(strings, dict)]
    if not metadata or len(metadata) < len(shards):
        return None
    items = [set(map(repr, strings.items())) for strings in metadata]
    return {k: v for k, v in metadata[0].items() if repr((k, v)) in set.intersection(*items)}


def _write_flax_folder(output: str, source: str, tree: Any, name: Any, others: str | None) -> int:
    if not isinstance(name, str) or not is_plain(name) or not name.endswith(".msgpack"):
        raise ValueError(f"{source}: {name!r:.80} is no plain name of a .msgpack file")
    with replacing_folder(output) as temporary:
        if others is not None:
            copy_other_files(others, temporary)
        return write_msgpack(os.path.join(temporary, name), tree, state_dict=False)
