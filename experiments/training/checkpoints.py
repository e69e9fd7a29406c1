"""Checkpoints of a training, by orbax: the only file that knows it."""

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
    """The checkpoints of one phase, in a folder of their own; the two latest are kept.

    A checkpoint gets its name when all of it is on the disk, checksums of its files included.
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
                cleanup_tmp_directories=True,  # what a killed run had half written
                async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except RuntimeError:
            if kind is None:  # else what ended the training is what is to be seen
                raise
        finally:
            self._manager.close()

    def due(self, step: int, last: int) -> bool:
        """Return whether the state after `step` steps is to be saved."""
        return step == last or step % self._every == 0

    def save(self, step: int, state: Any) -> None:
        """Save a state in the background; training may go on and change it.

        Raises:
          RuntimeError: if this one or the one before cannot be written, a full disk for example.
        """
        self.wait()
        if step in self._manager.all_steps():
            return  # a training that stopped there
        # Copied: on a CPU the writer would read the very buffers that the next step donates.
        leaves = _copy([leaf for leaf in jax.tree.leaves(state) if leaf.size])
        try:
            self._manager.save(step, args=ocp.args.StandardSave(leaves))
        except Exception as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Wait until all that was saved is on the disk.

        Raises:
          RuntimeError: if it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def latest(self) -> str:
        """Name the latest checkpoint that counts, once those in the making are on the disk."""
        self.wait()
        return self._latest()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Return (step, state) of the latest checkpoint that is whole, laid out as `like`.

        Damaged ones are set aside, as damaged-<step>-<n> in the same folder, each with a line that
        says so. None if there is no checkpoint.

        Raises:
          ValueError: if all are damaged, or the arrays do not fit `like`.
        """
        found = sorted(self._manager.all_steps(), reverse=True)
        step = next((step for step in found if self._whole(step)), None)
        if step is None:
            if found:
                raise ValueError(
                    f"{self._folder}: no checkpoint is whole. Remove the folder to train this "
                    "phase anew."
                )
            return None
        if step != found[0]:
            self._set_aside([other for other in found if other > step])
        wanted = jax.tree.leaves(like)
        abstract = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in wanted if x.size
        ]
        saved = iter(self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))
        # orbax stores no empty arrays; they are what they were
        leaves = [next(saved) if x.size else x for x in wanted]
        return step, jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _complete(self) -> None:
        """Write the checksums of what orbax is about to rename; in its thread, on one process."""
        (part,) = self._folder.glob("*.orbax-checkpoint-tmp")
        write_checksums(part)

    def _whole(self, step: int) -> bool:
        """Return whether a checkpoint is whole; the processes share the reading."""
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
