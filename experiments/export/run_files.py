"""Files of a finished run: the deployed network and its alternatives."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.export.shipping import as_stored, codes_of, file_metadata, shipped, trimmed
from experiments.files import write_text
from experiments.training.layout import fetch
from experiments.training.processes import is_writer
from experiments.trees import flat_leaves, map_leaves, sub_distributions
from sqs_jax.progress import progress

if TYPE_CHECKING:  # at runtime both import experiments.export
    from experiments.training.phases import Phase
    from experiments.training.step import TrainState

_HISTOGRAM_BINS = 120


@progress("writing dense.sqs")
def export_dense(workdir: Path, dense: Any, config: Any) -> None:
    """Write dense.sqs without rounding; every process must call this function.

    Args:
      workdir: Folder of the run.
      dense: Variables of the dense network.
      config: Config of the experiment.
    """
    variables = fetch(dense)
    if is_writer():
        sqs_jax.save(workdir / "dense.sqs", variables, metadata=file_metadata(config))


@progress("writing the files")
def export(
    workdir: Path,
    phase: "Phase",
    finetuned: Any,
    state: "TrainState",
    mean_state: Any,
    config: Any,
) -> None:
    """Write model.sqs, the deployed network, and average.sqs, mean.sqs, finetune.sqs.

    Each file is complete: params and the network's other collections. Every process must call this
    function. Arrays that are sharded over processes are gathered leaf by leaf, and one process
    writes.

    Args:
      workdir: Folder of the run.
      phase: Compression phase of the training.
      finetuned: Variables of the finetuned dense network; None if there is none.
      state: Final state of the compression phase.
      mean_state: Other collections of the network of posterior means.
      config: Config of the experiment.
    """
    transform, posterior, evaluation = phase.transform, state.posterior, config.evaluation
    draw: Any = transform.sample  # None for a transform without draws
    compressed = fetch(transform.compress(posterior))

    @jax.jit
    def sample(posterior: Any, index: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        key = jax.random.fold_in(key, index)
        return draw(posterior, key, temperature=evaluation.average_temperature, hard=True)

    model_state = fetch(state.model_state)
    draws = [
        trimmed(codes_of(fetch(sample(posterior, np.int32(i))), compressed), config)
        for i in range(evaluation.average_samples if draw else 0)
    ]
    mean = fetch(transform.mean(posterior, temperature=evaluation.temperature))
    shipped_tree, options = shipped(compressed, model_state, config)
    exact = {**options, "dense_dtype": None}
    files: dict[str, tuple[Any, dict[str, Any]]] = {
        "model.sqs": (shipped_tree, options),
        "mean.sqs": ({"params": mean, **mean_state}, exact),
    }
    if draws:  # batch norms are not folded, so that all draws share their constants
        files["average.sqs"] = {"draws": draws, **model_state}, options
    if finetuned is not None:
        files["finetune.sqs"] = fetch(finetuned), exact
    if is_writer():
        for name, (tree, options) in files.items():
            sqs_jax.save(workdir / name, tree, **options)


def deployed(phase: "Phase", state: "TrainState", config: Any) -> Any:
    """Return the variables that a process must read from model.sqs, from the posterior.

    Args:
      phase: Compression phase of the training.
      state: Final state of the phase.
      config: Config of the experiment.
    """
    params, leaves = fetch(phase.transform.mode(state.posterior)), flat_leaves(state.posterior)

    def without_rounding(path: str, weights: Any) -> Any:
        """Keep grid and composed leaves, which store no levels that are rounded."""
        composed = sqs_jax.is_compressed(leaves[path])
        composed = composed and not isinstance(leaves[path], sqs_jax.CompressedLeaf)
        return fetch(leaves[path]) if composed else weights

    params = map_leaves(without_rounding, params)
    tree, options = shipped(params, fetch(state.model_state), config)
    return sqs_jax.materialize(as_stored(tree, options["dense_dtype"]))


def describe_distributions(path: Path, posterior: Any) -> None:
    """Write each compressed tensor's histogram and mixture as JSON, for the report.

    Args:
      path: Path of the JSON file.
      posterior: Trained posterior.
    """
    described = {}
    for name, leaf in sub_distributions(fetch(posterior)).items():
        latent = np.asarray(leaf.loc, np.float64).ravel()
        counts, edges = np.histogram(latent, _HISTOGRAM_BINS)
        kept, _ = np.histogram(latent[np.asarray(leaf.kept).ravel()], edges)
        described[name] = {
            "edges": edges.tolist(),
            "all": counts.tolist(),
            "kept": kept.tolist(),
            "means": np.asarray(leaf.means).ravel().tolist(),
            "scales": np.exp(np.asarray(leaf.log_scales)).ravel().tolist(),
            "shares": np.asarray(jax.nn.softmax(jnp.asarray(leaf.mixture_logits))).ravel().tolist(),
        }
    if is_writer():
        write_text(path, json.dumps(described))
