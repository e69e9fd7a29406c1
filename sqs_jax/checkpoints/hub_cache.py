"""Lookup of a model's snapshot in the cache of huggingface_hub.

models--org--name/refs/main             revision of the latest download
models--org--name/snapshots/REVISION/   files of the model, links to models--org--name/blobs/
"""

import os

from sqs_jax.checkpoints.lazy_array import CheckpointError

__all__ = ["hub_snapshot"]

_LONGEST_REVISION = 200


def hub_snapshot(folder: str) -> str:
    """Return the snapshot of a cached repository; return any other folder unchanged.

    Args:
        folder: Path of a cached repository `models--org--name`, of a cache with a single
            repository, or of any other folder.

    Raises:
        CheckpointError: If the cache has several candidates (repositories, or snapshots without
            a current one), or no complete snapshot.
    """
    names = sorted(os.listdir(folder))
    repositories = [name for name in names if name.startswith("models--")]
    if repositories and not any(name.endswith(".safetensors") for name in names):
        return hub_snapshot(_only(folder, "repositories", repositories))
    hub = os.path.join(folder, "hub")
    if os.path.isdir(hub) and any(name.startswith("models--") for name in os.listdir(hub)):
        return hub_snapshot(hub)
    snapshots = os.path.join(folder, "snapshots")
    if not os.path.isdir(snapshots) or not {"refs", "blobs"} & set(names):
        return folder
    inner = (name for name in sorted(os.listdir(snapshots)) if not name.startswith("."))
    revisions = [name for name in inner if os.path.isdir(os.path.join(snapshots, name))]
    main = os.path.join(folder, "refs", "main")
    if os.path.isfile(main):
        with open(main, encoding="utf-8", errors="replace") as file:
            current = file.read(_LONGEST_REVISION).strip()
        if current in revisions:
            return os.path.join(snapshots, current)
    return _only(snapshots, "snapshots", revisions)


def _only(folder: str, what: str, names: list[str]) -> str:
    if len(names) != 1:
        shown = ", ".join(os.path.join(folder, name) for name in names[:5])
        remedy = f"give one of: {shown}" if names else "download the model again"
        raise CheckpointError(f"{folder}: a cache with {len(names)} {what}; {remedy}")
    return os.path.join(folder, names[0])
