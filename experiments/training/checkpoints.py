"""Checkpoints of a training, by orbax."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from experiments.training.checksums import damage, write_checksums
from experiments.training.processes import all_agree, is_writer, wait_for_all

_copy = jax.jit(lambda leaves: [jnp.copy(leaf) for leaf in leaves])


class Checkpoints:
    """Checkpoints of a phase, in a folder; the two latest are kept.

    A checkpoint gets its final name when all of its files are on the disk, checksums included.
    Every process of a training makes the same calls.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self._every = every
        self._folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(2),
                create=True,
                cleanup_tmp_directories=True,  # incomplete checkpoints of a killed run
                async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except RuntimeError:
            if kind is None:  # An error of the training has precedence.
                raise
        finally:
            self._manager.close()

    def due(self, step: int, last: int) -> bool:
        """Return whether the state after `step` steps is saved."""
        return step == last or step % self._every == 0

    def save(self, step: int, state: Any) -> None:
        """Save a copy of the state after `step` steps in the background.

        Raises:
          RuntimeError: This or the previous checkpoint cannot be written.
        """
        self.wait()
        if step in self._manager.all_steps():
            return  # A training that stopped at this step has saved the state.
        # Without a copy, the writer on a CPU would read the buffers that the next step donates.
        leaves = _copy([leaf for leaf in jax.tree.leaves(state) if leaf.size])
        try:
            self._manager.save(step, args=ocp.args.StandardSave(leaves))
        except Exception as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Wait until all checkpoints are on the disk.

        Raises:
          RuntimeError: A checkpoint cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def latest(self) -> str:
        """Name the latest checkpoint, after all checkpoints are on the disk."""
        self.wait()
        return self._latest()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Restore the latest intact checkpoint.

        Damaged checkpoints are renamed to damaged-<step>-<n> in the same folder, and a line is
        printed for each.

        Args:
          like: State of the shapes, dtypes and shardings to restore.

        Returns:
          (step, state); None if the folder has no checkpoint.

        Raises:
          ValueError: All checkpoints are damaged, or the arrays do not fit `like`.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        step = next((step for step in steps if self._whole(step)), None)
        if step is None:
            if steps:
                raise ValueError(
                    f"{self._folder}: no checkpoint is whole. Remove the folder to train this "
                    "phase anew."
                )
            return None
        if step != steps[0]:
            self._set_aside([other for other in steps if other > step])
        arrays = jax.tree.leaves(like)
        abstract = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in arrays if x.size
        ]
        saved = iter(self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))
        # Orbax stores no empty arrays; those of `like` take their place.
        leaves = [next(saved) if x.size else x for x in arrays]
        return step, jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _complete(self) -> None:
        """Write checksums before orbax renames a checkpoint, in the thread of orbax."""
        (part,) = self._folder.glob("*.orbax-checkpoint-tmp")
        write_checksums(part)

    def _whole(self, step: int) -> bool:
        """Return whether a checkpoint is intact; each process reads a share of the files."""
        folder = self._folder / str(step)
        wrong = damage(folder, jax.process_index(), jax.process_count())
        if wrong:
            print(f"{folder} is damaged: {wrong}. It is left out.", flush=True)
        return all_agree(wrong is None)

    def _set_aside(self, steps: list[int]) -> None:
        if is_writer():
            for step in steps:
                number = sum(1 for _ in self._folder.glob(f"damaged-{step}*"))
                os.rename(self._folder / str(step), self._folder / f"damaged-{step}-{number}")
        wait_for_all("damaged checkpoints are set aside")
        self._manager.reload()

    def _latest(self) -> str:
        steps = [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]
        return f"step {max(steps)} in {self._folder}" if steps else f"none in {self._folder}"

    def _not_written(self, error: Exception) -> RuntimeError:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return RuntimeError(
            f"{self._folder}: a checkpoint could not be written ({reason}). Is the disk full? The "
            f"last good checkpoint is {self._latest()}: make room, and give the same command again."
        )
