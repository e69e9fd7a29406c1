"""Training loop: batches, masks, metrics, checkpoints, and the end of a training."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.data import Dataset, batch_indices
from experiments.training.checkpoints import Checkpoints
from experiments.training.metrics_log import metrics_log
from experiments.training.non_finite import explain
from experiments.training.phases import Phase
from experiments.training.processes import STOPPED, is_writer, stop_requests
from experiments.training.sharding import fetch, lay_out, place, share_out
from experiments.training.step import TrainState, init_state, make_gradient, make_step
from experiments.trees import sparsity
from sqs_jax.progress import progress


def run_phase(
    phase: Phase,
    model: nn.Module,
    variables: Any,
    teacher: Any,
    train: Dataset,
    config: Any,
    workdir: Path,
    mesh: Mesh,
) -> TrainState:
    """Run a phase to the end, starting from the latest checkpoint if any.

    All processes call `run_phase`.

    Args:
      phase: Phase.
      model: Network.
      variables: Initial variables: "params" and the other collections.
      teacher: Variables of the teacher; {} without one.
      train: Training examples.
      config: Config of the experiment.
      workdir: Folder of checkpoints and metrics.
      mesh: Mesh of all devices of all processes.

    Returns:
      The final state, sharded over the mesh.

    Raises:
      FloatingPointError: The loss or the gradient is not finite. The message names the step, the
        first such array and the latest checkpoint.
      SystemExit: SIGTERM arrived, and its step is saved; the code is STOPPED.
    """
    # Codebooks start on the host, where the whole posterior fits; a device may hold only a shard.
    with progress(f"start of {phase.name}"), jax.default_device("cpu"):
        state = init_state(phase, fetch(variables))
    layout = lay_out(state, state.posterior, mesh, config)
    state = place(state, layout)
    num_data = len(train.labels)
    gradient = make_gradient(model, phase, train, config)
    step_fn = make_step(gradient, phase, train.units, layout, mesh)
    seed = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
    # Devices emulated on one CPU share its threads: queued steps would wait for each other in their
    # collectives until XLA aborts.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    await_each_step = mesh.size > 1 and on_cpu

    # A decision of the mask consists of many small operations, which a single accelerator would
    # compile for minutes. Several accelerators decide themselves, because the state is sharded.
    decide_on_host = mesh.size == 1 and not on_cpu

    def decided(state: TrainState, step: int) -> Any:
        assert phase.mask is not None
        if not decide_on_host:
            return phase.mask.decide(state.posterior, step, state.model_state)
        with jax.default_device("cpu"):
            return phase.mask.decide(fetch(state.posterior), step, fetch(state.model_state))

    def batch_of(step: int) -> Any:
        chosen = batch_indices(num_data, config.batch_size, config.seed, step)
        return share_out(train, chosen, mesh)

    def batches(start: int) -> Iterator[Any]:
        """Read each batch while the devices process the previous batch."""
        if start == phase.steps:
            return  # A finished training reads no batch.
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(batch_of, start)
            for step in range(start, phase.steps):
                batch = coming.result()
                if step + 1 < phase.steps:
                    coming = reader.submit(batch_of, step + 1)
                yield batch

    folder = workdir / "checkpoints" / phase.name
    with Checkpoints(folder, config.checkpoint_every) as checkpoints:

        def require_finite(state: TrainState, failed: Any) -> None:
            """Raise FloatingPointError if a step has failed, which left the state unchanged."""
            step = int(failed)
            if step < 0:
                return
            array = explain(gradient, state, batch_of(step), teacher, np.int32(step), seed)
            raise FloatingPointError(
                f"{phase.name}, step {step + 1}: the loss or the gradient is not finite, first in "
                f"{array}. The step was not applied. The last good checkpoint is "
                f"{checkpoints.latest()}. The same command goes on from there and ends here again: "
                "repair the data, or give a smaller learning rate and another --workdir."
            )

        restored = checkpoints.restore(state)
        start, state = restored or (0, state)
        failed = jax.device_put(np.int32(-1), NamedSharding(mesh, PartitionSpec()))
        with (
            metrics_log(workdir / "metrics.jsonl", phase.name, start, phase.steps) as write,
            stop_requests() as stop,
        ):
            for step, batch in enumerate(batches(start), start):
                if phase.mask is not None and phase.mask.due(step):
                    require_finite(state, failed)
                    posterior = decided(state, step)
                    posterior = jax.device_put(posterior, layout.posterior)
                    state = state._replace(posterior=posterior)
                    if await_each_step:
                        jax.block_until_ready(state)
                before = failed
                state, failed, metrics = step_fn(
                    state, failed, batch, teacher, np.int32(step), seed
                )
                if await_each_step:
                    jax.block_until_ready((state, metrics))
                done = step + 1
                stopping = stop()
                saving = stopping or checkpoints.due(done, phase.steps)
                writing = done % 10 == 0 or done == phase.steps
                # The check is one step late, so that the device always has work. Before metrics
                # or checkpoints are written the check waits for the present step.
                require_finite(state, failed if saving or writing else before)
                if writing:
                    line = {name: float(value) for name, value in metrics.items()}
                    write(done, {**line, "sparsity": sparsity(state.posterior)})
                if saving:
                    checkpoints.save(done, state)
                if stopping:
                    checkpoints.wait()
                    if is_writer():
                        print(f"Stopped by SIGTERM; saved as {checkpoints.latest()}.", flush=True)
                    raise SystemExit(STOPPED)
    return state
