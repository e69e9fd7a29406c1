"""PyTorch state dicts from files as numpy arrays, without executing code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.checkpoints import open_checkpoint, unwrapped

# Keys under which training scripts store a state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict from a file.

    Other entries of a training checkpoint are left out, and so are wrappers of names, such as
    "module.", see `sqs_jax.checkpoints.unwrapped`.

    Args:
      path: File with the suffix .safetensors, .npz, or a suffix of PyTorch (.pt, .pth, .th, .bin,
        .ckpt, .tar). PyTorch loads its own formats with `weights_only=True`.

    Returns:
      Arrays by name.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If the suffix is unknown, the file is damaged, or the file has no arrays.
      ModuleNotFoundError: If the file is of PyTorch's formats and PyTorch is not installed.
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
        arrays = read(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the libraries raise exceptions of several classes
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error}") from error
    if not arrays:
        raise ValueError(f"{path} holds no arrays; give the file of a state dict.")
    return unwrapped(arrays)


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    # The safetensors library cannot read float8 into numpy.
    return {name: np.asarray(tensor) for name, tensor in open_checkpoint(path).tree.items()}


def _npz(path: Path) -> dict[str, np.ndarray]:
    # The stream is opened here, because np.load(path) does not close a file it cannot read.
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


_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
_READERS = {".safetensors": _safetensors, ".npz": _npz, **dict.fromkeys(_TORCH_SUFFIXES, _torch)}
