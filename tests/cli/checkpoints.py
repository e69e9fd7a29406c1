"""Checkpoints for the tests of the command, and the command itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from sqs_jax.checkpoints import write_safetensors
from sqs_jax.cli import main

ROOT = Path(__file__).resolve().parents[2]


def run(*args):
    """Run the command in this process; return the exit code."""
    return main([str(arg) for arg in args])


def process(*args, **options):
    """Run the command in a separate process with warnings as errors."""
    command = [sys.executable, "-W", "error", "-m", "sqs_jax.cli", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(command, capture_output=True, env=environment, **options)


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(path, tensors, metadata=None):
    """Write a safetensors file and its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, tensors, {"format": "pt"} if metadata is None else metadata)
    return path


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def tensors_under(folder):
    """Read all safetensors files under a folder: {file: {name: array}}."""
    from safetensors.numpy import load_file

    files = sorted(Path(folder).rglob("*.safetensors"))
    return {f.relative_to(folder).as_posix(): load_file(f) for f in files if f.name[:2] != "._"}


def shapes(files):
    return {f: {n: (x.shape, x.dtype) for n, x in part.items()} for f, part in files.items()}


def comes_back(source, tmp_path, *options, code=0):
    """Compress and decompress a folder; return the tensors by file."""
    packed, again = tmp_path / "packed", tmp_path / "again"
    assert run("compress", source, "-o", packed, "--target-ratio", 2, *options) == code
    assert run("decompress", packed, "-o", again) == 0
    return tensors_under(again)
