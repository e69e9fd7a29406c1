"""sqs inspect, verify and diff: contents, integrity and differences of sqs files."""

import argparse
import math
from typing import Any

import numpy as np

from sqs_jax.artifact import CompressedLeaf, SqsFile
from sqs_jax.artifact.coding import entropy_bits, histogram
from sqs_jax.artifact.leaves import materialize
from sqs_jax.artifact.reader import Leaf
from sqs_jax.artifact.spec import LeafSpec, SymbolsSpec
from sqs_jax.artifact.text_table import format_table, printable
from sqs_jax.checkpoints import flat_names, open_checkpoint
from sqs_jax.cli.common import add_command, counted, lazy_tensors, open_sqs, print_json
from sqs_jax.cli.console import say
from sqs_jax.progress import progress

__all__ = ["add_diff", "add_inspect", "add_verify"]


def add_inspect(commands: Any) -> None:
    """Add `sqs inspect`."""
    help = "show the size of each tensor in a file, by four measures"
    parser = add_command(commands, "inspect", _inspect, help, "sqs inspect model.sqs")
    parser.add_argument("file", help="an sqs file, or a folder with one")


def _inspect(args: argparse.Namespace) -> int:
    with open_sqs(args.file) as file:
        file.check()
        report = file.report()
        version = ".".join(map(str, file.version))
        if args.json:
            print_json({"version": version, "metadata": file.metadata, **report.as_dict()})
            return 0
        say(str(report))
        say(printable(f"format {version}, {file.file_bytes:,} bytes: {file.path}"))
        for key, value in file.metadata.items():
            text = str(value)
            text = text if len(text) <= 300 else text[:300] + " ... (--json shows all)"
            say(printable(f"{key}: {text}"))
    return 0


def add_verify(commands: Any) -> None:
    """Add `sqs verify`."""
    help = "check the integrity of a file, and its error against the original weights"
    example = "sqs verify model.sqs model.safetensors"
    parser = add_command(commands, "verify", _verify, help, example)
    parser.add_argument("file", help="an sqs file, or a folder with one")
    parser.add_argument("original", nargs="?", help="the checkpoint that was compressed")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="X",
        help="fail if the relative L2 error of any tensor is larger",
    )


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no tolerance; write a number such as 0.1")
    return value


def _verify(args: argparse.Namespace) -> int:
    if args.tolerance is not None and args.original is None:
        raise ValueError("--tolerance needs an original to compare with; give the original too")
    with open_sqs(args.file) as file:
        lazy_tensors(file)  # raises unless names are unique
        original, left_out = (None, 0) if args.original is None else _original(args.original, file)
        rows, problems = [], []
        if original is not None:
            paths = {leaf.path for leaf in file.leaves}
            problems += [f"{name}: not in the file" for name in original.keys() - paths]
            problems += [f"{name}: not in the original" for name in paths - original.keys()]
        with progress("verifying", len(file.leaves), keep=True) as advance:
            for leaf in file.leaves:
                value = file.read(leaf.path)
                problems += _misstated(leaf, value)
                if original is not None and leaf.path in original:
                    row = _errors(leaf.path, materialize(value), original[leaf.path])
                    rows.append(row)
                    error = row["relative_error"]
                    most = np.inf if args.tolerance is None else args.tolerance
                    if error is None or not error <= most or error == np.inf:
                        problems.append(
                            f"{leaf.path}: {row['note'] or f'relative error {error:.3g}'}"
                        )
                advance(1)
        for name in file.attachments:
            file.read_attachment(name)
        problems.sort()
        count = len(file.leaves)
        contents = counted(count, "tensor")
        if file.attachments:
            contents += f" and {counted(len(file.attachments), 'attachment')}"
        summary = f"{file.path}: {contents}, all checksums match"
    if args.json:
        print_json({"file": args.file, "tensors": count, "errors": rows, "problems": problems})
        return 1 if problems else 0
    if left_out:
        verb = "was" if left_out == 1 else "were"
        summary += f"; {counted(left_out, 'tensor')} {verb} left out by --only and --exclude"
    if rows:
        say(format_table(["tensor", "max error", "relative error", ""], map(_cells, rows), 1))
    say(printable(summary))
    for problem in problems:
        say(printable(f"problem: {problem}"))
    return 1 if problems else 0


def _original(path: str, file: SqsFile) -> tuple[dict[str, Any], int]:
    """Return the original tensors that the file should contain.

    Args:
        path: Path of the original checkpoint.
        file: Compressed file, whose recipe lists the tensors that were left out.

    Returns:
        Tensors by name, with None for each file of tensors that was not read; and the number of
        tensors that the recipe left out.
    """
    recipe = file.metadata.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    recorded = recipe.get("left_out")
    recorded = recorded if isinstance(recorded, list) else []
    # The recorded names, not the patterns: an untrusted regular expression could run forever.
    left_out = {name for name in recorded if isinstance(name, str)}
    checkpoint = open_checkpoint(path, exclude=left_out.__contains__)
    tensors = flat_names(checkpoint.tree)
    taken = {name: x for name, x in tensors.items() if name not in left_out}
    unread = [name for name in checkpoint.left_out if name not in left_out]
    return {**taken, **dict.fromkeys(unread)}, len(tensors) - len(taken)


def _misstated(leaf: Leaf, value: Any) -> list[str]:
    """Check the sparsity and entropy in the index of a file against the values."""
    spec = leaf.spec
    if not (isinstance(spec, LeafSpec) and isinstance(value, CompressedLeaf)):
        return []
    stated = spec.parts[0]
    assert isinstance(stated, SymbolsSpec)  # a codebook leaf's first part
    counts = histogram(value.codes.reshape(-1), stated.alphabet)
    right = int(counts[1:].sum()) == stated.nonzero
    if right and abs(entropy_bits(counts) - stated.entropy_bits) < 1:
        return []
    return [f"{leaf.path}: the index misstates sparsity or entropy"]


def _errors(path: str, weights: Any, original: Any) -> dict[str, Any]:
    """Compare a tensor with the original.

    Returns:
        Row of the report. Errors are None if shapes or dtypes differ, or integers are unequal.
    """
    row: dict[str, Any] = {"tensor": path, "max_error": None, "relative_error": None, "note": ""}
    expected = np.asarray(original)
    if (weights.shape, weights.dtype) != (expected.shape, expected.dtype):
        row["note"] = f"{weights.dtype}{list(weights.shape)}, the original is " + (
            f"{expected.dtype}{list(expected.shape)}"
        )
        return row
    if weights.tobytes() == expected.tobytes():
        return {**row, "max_error": 0.0, "relative_error": 0.0, "note": "exact"}
    if expected.dtype.kind in "biu":
        return {**row, "note": "differs, and is not of a floating dtype"}
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):  # values that are not finite are noted below
        difference = np.abs(weights.astype(wide) - expected.astype(wide))
        norm = float(np.linalg.norm(expected.astype(wide)))
        error = float(np.linalg.norm(difference))
    row["max_error"] = float(difference.max())
    row["relative_error"] = error / norm if norm else float("inf")
    if not np.isfinite(error):
        row["note"] = "not finite"
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    figures = [row["max_error"], row["relative_error"]]
    return [row["tensor"], *("-" if x is None else f"{x:.4g}" for x in figures), row["note"]]


def add_diff(commands: Any) -> None:
    """Add `sqs diff`."""
    help = "show the differences of two files"
    parser = add_command(commands, "diff", _diff, help, "sqs diff before.sqs after.sqs")
    parser.add_argument("first", help="an sqs file, or a folder with one")
    parser.add_argument("second", help="another")


def _diff(args: argparse.Namespace) -> int:
    with open_sqs(args.first) as first, open_sqs(args.second) as second:
        left, right = ({leaf.path: leaf for leaf in file.leaves} for file in (first, second))
        lazy_tensors(first), lazy_tensors(second)  # raises unless names are unique
        rows = []
        with progress("comparing", len(left.keys() | right.keys()), keep=True) as advance:
            for path in [*left, *(right.keys() - left.keys())]:
                row = _difference(first, second, path, left.get(path), right.get(path))
                if row is not None:
                    rows.append(row)
                advance(1)
        metadata = first.metadata == second.metadata
        attached = [
            {n: file.read_attachment(n) for n in file.attachments} for file in (first, second)
        ]
        same_attachments = attached[0] == attached[1]
        sizes = first.file_bytes, second.file_bytes
    rows.sort(key=lambda row: row["tensor"])
    same = not rows and metadata and same_attachments
    if args.json:
        equal = {"metadata": metadata, "attachments": same_attachments}
        print_json({"same": same, "bytes": sizes, **equal, "differences": rows})
    else:
        if rows:
            head = ["tensor", "bytes", "bytes", "relative change", ""]
            say(format_table(head, map(_diff_cells, rows), 1))
        verb = "differs" if len(rows) == 1 else "differ"
        say(f"{sizes[0]:,} and {sizes[1]:,} bytes; {counted(len(rows), 'tensor')} {verb}")
        if not metadata:
            say("the metadata differ")
        if not same_attachments:
            say("the attachments differ")
    return 0 if same else 1


def _difference(
    first: SqsFile, second: SqsFile, path: str, a: Leaf | None, b: Leaf | None
) -> dict[str, Any] | None:
    """Return a row of the report for leaf a of `first` and b of `second`; None if equal."""
    row: dict[str, Any] = {
        "tensor": path,
        "bytes": [leaf and leaf.file_bytes for leaf in (a, b)],
        "relative_change": None,
        "note": "",
    }
    if a is None or b is None:
        return {**row, "note": f"only in the {'second' if a is None else 'first'}"}
    left, right = (materialize(file.read(path)) for file in (first, second))
    errors = _errors(path, right, left)
    if errors["note"] == "exact":
        return None
    return {**row, "relative_change": errors["relative_error"], "note": errors["note"]}


def _diff_cells(row: dict[str, Any]) -> list[str]:
    sizes = ["-" if size is None else f"{size:,}" for size in row["bytes"]]
    change = row["relative_change"]
    return [row["tensor"], *sizes, "-" if change is None else f"{change:.4g}", row["note"]]
