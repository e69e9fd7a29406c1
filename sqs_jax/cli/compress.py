"""sqs compress: compress a checkpoint to a file of a given size."""

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqs_jax
from sqs_jax.artifact.atomic import replacing_folder
from sqs_jax.artifact.dtypes import rounding_dtype
from sqs_jax.artifact.text_table import printable
from sqs_jax.budget.distortion import HARMLESS_LOSS, bits_below
from sqs_jax.checkpoints import Checkpoint, copy_other_files, flat_names, open_checkpoint
from sqs_jax.checkpoints.huggingface_folder import layout_without
from sqs_jax.checkpoints.other_files import list_other_files
from sqs_jax.checkpoints.weight_files import is_index
from sqs_jax.cli.common import MODEL, add_command, counted, print_json, workers
from sqs_jax.cli.console import say
from sqs_jax.cli.outputs import check_output
from sqs_jax.cli.selection import (
    add_selection,
    matcher,
    no_match,
    pattern_type,
    select,
    whole_or_part,
    without,
)
from sqs_jax.progress import progress, tracked

__all__ = ["add_compress"]

# Approximate passes over the weights: sorting, each candidate file, and the final comparison.
_PASSES = 5
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SHOWN = 8
_LEAST_RATIO = 1e-6
_CAUTION = 0.97  # factor of the suggested ratio, because predicted losses err by a few percent
# Replacements in the library's messages, which name arguments instead of options.
_OPTIONS = (
    (
        "or leave the leaf dense with a rule with components=None",
        "or leave the tensor as it is, --keep PATTERN",
    ),
    ("sensitivity has", "--sensitivity has"),
    ("dense_dtype", "--dense-dtype"),
    ("target_bytes", "--target-bytes"),
    ("target_ratio", "--target-ratio"),
)


def add_compress(commands: Any) -> None:
    """Add `sqs compress`."""
    help = "compress a checkpoint to a given size, without data and without the model's code"
    example = "sqs compress model.safetensors -o model.sqs --target-ratio 8"
    parser = add_command(commands, "compress", _compress, help, example)
    parser.add_argument(
        "input",
        help="safetensors, .npz, Flax msgpack, an orbax folder, or a Hugging Face folder",
    )
    parser.add_argument(
        "-o", "--output", required=True, help="the sqs file (a folder for a Hugging Face folder)"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--target-ratio",
        type=_ratio,
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
        type=pattern_type,
        metavar="PATTERN",
        help="do not compress tensors whose name, or the name up to a slash or dot, fully matches "
        "this regular expression; may be repeated",
    )
    add_selection(parser)
    parser.add_argument(
        "--stacked",
        type=int,
        metavar="N",
        help="the first N axes of a tensor are a stack (layers under scan, experts) whose slices "
        "have separate levels; by default chosen by file size, 0 for never",
    )
    parser.add_argument(
        "--dense-dtype",
        metavar="DTYPE",
        help="dtype to round uncompressed tensors to: float16, bfloat16, float8_e4m3fn, ...",
    )
    parser.add_argument(
        "--sensitivity",
        metavar="FILE",
        help="a checkpoint with the same names: factor of each weight's squared error",
    )


def _ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _LEAST_RATIO < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no ratio; write a number above 0, such as 8")
    return value


def _bytes(text: str) -> int:
    size = re.fullmatch(r"([0-9.]+) *([a-zA-Z]*)", text)
    try:
        if size is not None:
            return math.floor(float(size[1]) * _UNITS[size[2].upper()])
    except (KeyError, ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no size; write 33500, 33.5kB, 400MB or 1GiB")


class _LeftOut(NamedTuple):
    """Parts of the checkpoint that the compressed file or folder lacks.

    Attributes:
        tensors: Names of the tensors that --only and --exclude leave out.
        files: Files with tensors, index files and folders that match --exclude.
        lost: Files with tensors that are left out although no option says so.
        uncopied: Other paths that are not copied: links to folders, folders of tools, pipes.
    """

    tensors: list[str]
    files: list[str]
    lost: list[str]
    uncopied: list[str]


def _compress(args: argparse.Namespace) -> int:
    try:
        return _compress_checkpoint(args)
    except sqs_jax.BudgetError as error:
        raise sqs_jax.BudgetError(_too_small(args, error)) from error
    except ValueError as error:
        message = _in_options(str(error))
        if args.input in message or args.output in message:
            raise
        raise ValueError(f"{args.input}: {message}") from error


def _compress_checkpoint(args: argparse.Namespace) -> int:
    source = open_checkpoint(args.input, exclude=matcher(args.exclude))
    selection = select(source.tree, args.only, args.exclude, args.input)
    folder = source.kind == "huggingface"
    sized = flat_names(selection.tree)
    original = sum(tensor.nbytes for tensor in sized.values())
    left, copied = _list_left_out(args, source, selection.left_out)
    _check_options(args, sized)
    budget = args.target_bytes or int(original / (args.target_ratio or math.inf))
    sources = [args.input, *filter(None, [source.root, args.sensitivity])]
    check_output(args.output, sources, nbytes=budget + copied, folder=folder)

    options = {"dense_dtype": args.dense_dtype, "metadata": _metadata(args, source, left)}
    compressed, loss = _to_budget(args, selection.tree, selection.left_out, original, options)
    weights = sum(tensor.size for tensor in sized.values())
    options["workers"] = workers(weights)
    with progress("writing"):
        if folder:
            exclude = {name.rstrip("/") for name in source.left_out}
            with replacing_folder(args.output) as temporary:
                copy_other_files(source.root, temporary, exclude)
                written = sqs_jax.save(os.path.join(temporary, MODEL), compressed, **options)
        else:
            written = sqs_jax.save(args.output, compressed, **options)
    _report(args, written, original, left, loss, weights)
    return 1 if left.lost else 0


def _check_options(args: argparse.Namespace, tensors: Mapping[str, Any]) -> None:
    """Raise ValueError if an option does not fit the checkpoint."""
    if not tensors:
        raise ValueError(f"{args.input}: holds no tensors; there is nothing to compress")
    if not any(tensor.size for tensor in tensors.values()):
        raise ValueError(
            f"{args.input}: holds {counted(len(tensors), 'tensor')} without a weight; "
            "there is nothing to compress"
        )
    rounding_dtype(args.dense_dtype)
    if args.stacked is not None and args.stacked < 0:
        raise ValueError(f"--stacked {args.stacked}: a number of axes is 0 or more")
    names = list(tensors)
    for pattern in args.keep:
        if not any(map(matcher([pattern]), names)):
            raise ValueError(no_match("--keep", pattern, names, args.input))


def _list_left_out(
    args: argparse.Namespace, source: Checkpoint, tensors: Sequence[str]
) -> tuple[_LeftOut, int]:
    """List the parts to leave out, and sum the sizes of the files to copy, bytes.

    Raises:
        ValueError: If a pattern of --exclude matches nothing, or the source has a folder with the
            name of the compressed file.
    """
    excluded = matcher(args.exclude)
    files = [name for name in source.left_out if excluded(name) or excluded(name.rstrip("/"))]
    lost = [name for name in source.left_out if name not in files]
    uncopied, copied = [], 0
    names = [*flat_names(source.tree), *source.left_out]
    if source.kind == "huggingface":
        others = list_other_files(source.root, {name.rstrip("/") for name in source.left_out})
        shards = {*source.metadata.get("shards", ()), source.metadata.get("msgpack")}
        copied = others.nbytes
        indices = [x for x in others.left_out if is_index(x)]
        used = {source.metadata.get("index")}
        used |= {f"{k}/{x['index']}" for k, x in source.metadata.get("folders", {}).items()}
        files += [x for x in indices if x not in used and excluded(x)]
        names += indices
        uncopied = [x for x in others.left_out if x not in {*shards, *indices}]
        if f"{MODEL}/" in others.copied:
            path = os.path.join(source.root, MODEL)
            raise ValueError(f"{path}: a folder has the name of the output file; rename it")
    for pattern in args.exclude:
        if not any(map(matcher([pattern]), names)):
            raise ValueError(no_match("--exclude", pattern, names, args.input))
    return _LeftOut(list(tensors), files, lost, uncopied), copied


def _to_budget(
    args: argparse.Namespace,
    tree: Any,
    left_out: Sequence[str],
    original: int,
    options: dict[str, Any],
) -> tuple[Any, float]:
    """Compress the tree to the target size; return the result and the predicted loss."""
    sensitivity = None
    if args.sensitivity is not None:
        sensitivity = open_checkpoint(args.sensitivity, exclude=matcher(args.exclude)).tree
        unknown = sorted(flat_names(sensitivity).keys() - flat_names(tree).keys() - set(left_out))
        if unknown:
            raise ValueError(
                f"--sensitivity {args.sensitivity}: has {_some(unknown)}, "
                f"which {args.input} does not have"
            )
        sensitivity = without(sensitivity, set(left_out))
    keep = [sqs_jax.Rule(pattern=whole_or_part(p), components=None) for p in args.keep]
    with progress("compressing", _PASSES * original, percent=True, keep=True) as advance:
        compressed = sqs_jax.compress_to_budget(
            tracked(tree, advance),
            target_bytes=args.target_bytes,
            target_ratio=args.target_ratio,
            sensitivity=sensitivity,
            rules=[*keep, *sqs_jax.DEFAULT_RULES],
            stacked=args.stacked,
            **options,
        )
        loss = sqs_jax.predicted_loss(tracked(tree, advance), compressed)
    return compressed, loss


def _in_options(message: str) -> str:
    for argument, option in _OPTIONS:
        message = message.replace(argument, option)
    return message


def _too_small(args: argparse.Namespace, error: sqs_jax.BudgetError) -> str:
    """Format the error of a budget that is too small, with its causes and remedies."""
    target = f"--target-bytes {args.target_bytes}"
    if args.target_ratio is not None:
        target = f"--target-ratio {args.target_ratio:g}"
    lines = (
        f"{args.input}: {target} asks for {error.budget:,} bytes, below the least possible file of "
        f"{error.least:,} bytes"
    )
    whole = [entry for entry in error.dense if not entry[1].startswith(("float", "bfloat"))]
    floating = [entry for entry in error.dense if entry not in whole]
    remedies = ["a larger budget"]
    if whole:
        dtypes = ", ".join(sorted({dtype for _, dtype, _ in whole}))
        lines += (
            f"; {counted(len(whole), 'tensor')} of {dtypes}, never rounded, in "
            f"{sum(nbytes for *_, nbytes in whole):,} bytes"
        )
        remedies.append("--exclude for tensors that are not needed")
    if floating:
        lines += (
            f"; {counted(len(floating), 'floating tensor')}, left uncompressed, in "
            f"{sum(nbytes for *_, nbytes in floating):,} bytes"
        )
        remedies.append("a narrower --dense-dtype, such as bfloat16")
    return f"{lines}. What helps: {'; '.join(remedies)}"


def _report(
    args: argparse.Namespace, written: int, original: int, left: _LeftOut, loss: float, weights: int
) -> None:
    ratio = original / written
    if args.json:
        result = {"output": args.output, "bytes": written, "original_bytes": original}
        lists = {"left_out": [*left.tensors, *left.files], "lost": left.lost}
        not_copied = [*left.lost, *left.uncopied]
        figures = {"ratio": ratio, "predicted_loss": loss}
        print_json({**result, **figures, **lists, "not_copied": not_copied})
        return
    lines = [
        f"{args.output}: {written:,} bytes, {ratio:.2f}x smaller than the weights; "
        f"predicted loss {loss:.3f}"
    ]
    if left.tensors:
        lines.append(f"left out: {counted(len(left.tensors), 'tensor')}: {_some(left.tensors)}")
    if left.files:
        lines.append(f"left out: {', '.join(left.files)}")
    if left.lost or left.uncopied:
        lines.append(f"not copied: {', '.join([*left.lost, *left.uncopied])}")
    if left.lost:
        lines.append(
            "problem: files with tensors are not in the output; compress them separately, or "
            f"exclude them if they are not needed: --exclude '{_escaped(left.lost[0].rstrip('/'))}'"
        )
    if loss > HARMLESS_LOSS:
        lines.append(_warning(written, original, loss, weights))
    for line in lines:
        say(printable(line))


def _warning(written: int, original: int, loss: float, weights: int) -> str:
    """Format the warning of a high predicted loss, with a milder ratio to try."""
    milder = original / (written + weights * bits_below(loss) / 8)
    milder = math.floor(10 * _CAUTION * milder) / 10
    remedy = f"--target-ratio {milder:g} is below that" if milder > 1 else "give more bytes"
    return (
        f"warning: above {HARMLESS_LOSS:g} networks lose accuracy (docs/budget.md): measure it; "
        f"{remedy}, and training or calibration on data loses less"
    )


def _escaped(name: str) -> str:
    return re.sub(r"([^\w/ -])", r"\\\1", name)  # legible, unlike re.escape


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _metadata(args: argparse.Namespace, source: Checkpoint, left: _LeftOut) -> dict[str, Any]:
    """Return the file's provenance and recipe.

    Equal inputs and options give equal metadata: times and full paths are omitted.
    """
    name = os.path.basename(os.path.normpath(args.input))
    recipe = {
        "target_bytes": args.target_bytes,
        "target_ratio": args.target_ratio,
        "keep": args.keep,
        "only": args.only,
        "exclude": args.exclude,
        "stacked": args.stacked,
        "dense_dtype": args.dense_dtype,
        "sensitivity": args.sensitivity and os.path.basename(args.sensitivity),
        "left_out": [*left.tensors, *left.files],
    }
    layout = source.metadata
    if "weight_map" in layout and left.tensors:
        layout = layout_without(layout, set(left.tensors))
    return {
        "provenance": {
            "sqs_jax": sqs_jax.__version__,
            "source": name,
            "kind": source.kind,
            "bytes": source.nbytes,
            "metadata": layout,
        },
        "recipe": {key: value for key, value in recipe.items() if value not in (None, [], "")},
    }
