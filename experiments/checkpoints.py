"""Checkpoints of a training, by orbax: the only file that knows it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one phase, in a folder of their own; the two latest are kept."""

    def __init__(self, folder: Path, every: int) -> None:
        self._every = every
        policy = ocp.checkpoint_managers.LatestN(2)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(preservation_policy=policy, create=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()  # waits for what is still being written

    def due(self, step: int, last: int) -> bool:
        """Return whether the state after `step` steps is to be saved."""
        return step == last or step % self._every == 0

    def save(self, step: int, state: Any) -> None:
        """Save a state in the background; training may go on and change it."""
        # Copied: on a CPU the writer would read the very buffers that the next step donates.
        leaves = [jnp.copy(leaf) for leaf in jax.tree.leaves(state) if leaf.size]
        self._manager.save(step, args=ocp.args.StandardSave(leaves))

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Return (step, state) of the latest checkpoint, laid out as `like`; None if there is none.

        Raises:
          ValueError: if the checkpoint's arrays do not fit `like`.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        wanted = jax.tree.leaves(like)
        abstract = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in wanted if x.size
        ]
        saved = iter(self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))
        # orbax stores no empty arrays; they are what they were
        leaves = [next(saved) if x.size else x for x in wanted]
        return step, jax.tree.unflatten(jax.tree.structure(like), leaves)
