"""PyTorch state dicts from files, as numpy arrays; nothing in a file is ever executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.checkpoints import open_checkpoint, unwrapped

# What training scripts wrap a state dict in.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict: .safetensors, .npz, or what PyTorch saves (.pt, .pth, .th, .bin, ...).

    Entries of a training checkpoint beside the state dict are left out, and so are the wrappers
    that training puts around names, see `sqs_jax.checkpoints.unwrapped`.

    Args:
      path: the file. PyTorch reads its own formats, weights only.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a file of these kinds, a damaged one, or one that holds no arrays.
      ModuleNotFoundError: for PyTorch's formats, where it is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give the path of a state dict.")
    read = _READERS.get(path.suffix)
    if read is None:
        raise ValueError(
            f"{path}: its kind, {path.suffix or 'none'}, is unknown; state dicts are read from "
            f"files that end in {', '.join(_READERS)}."
        )
    try:
        found = read(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each library has its own
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error}") from error
    if not found:
        raise ValueError(f"{path} holds no arrays; give the file of a state dict.")
    return unwrapped(found)


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    # not by the library, which has no float8
    return {name: np.asarray(tensor) for name, tensor in open_checkpoint(path).tree.items()}


def _npz(path: Path) -> dict[str, np.ndarray]:
    # opened here: numpy leaves a file open that it cannot read
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file}
    for name, x in arrays.items():
        if x.dtype.kind == "V":
            raise ValueError(
                f"{name} is raw bytes of dtype {x.dtype}, as numpy saves bfloat16 and "
                "float8; save it as .safetensors"
            )
    return arrays


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is PyTorch's own format, and PyTorch is not installed: pip install torch, or "
            "convert the file to .safetensors where it is."
        ) from error
    tree: Any = torch.load(path, map_location="cpu", weights_only=True)
    for name in _WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
            break
    if not isinstance(tree, Mapping):
        raise ValueError(f"it holds a {type(tree).__name__}, not a state dict")
    tensors = {name: x for name, x in tree.items() if isinstance(x, torch.Tensor)}
    return {
        name: (x.float() if x.is_floating_point() else x).detach().numpy()
        for name, x in tensors.items()
    }


_OF_PYTORCH = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
_READERS = {".safetensors": _safetensors, ".npz": _npz, **dict.fromkeys(_OF_PYTORCH, _torch)}
