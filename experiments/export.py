"""What a finished run writes: one file per way to use the posterior, each of them complete."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

import sqs_jax
from experiments.atomic_files import write_text
from experiments.configs import base
from experiments.training.batch_norm import fold_statistics
from experiments.training.processes import is_writer
from experiments.training.sharding import fetch
from experiments.trees import flat_leaves, map_leaves, sub_distributions
from sqs_jax.progress import progress

if TYPE_CHECKING:  # which both need what size.py needs of this file
    from experiments.training.phases import Phase
    from experiments.training.step import TrainState

_HISTOGRAM_BINS = 120
_OF_THE_MACHINE = ("data.directory", "mesh.", "sharding", "checkpoint_every")


@progress("writing dense.sqs")
def export_dense(workdir: Path, dense: Any, config: Any) -> None:
    """Write dense.sqs, exactly; every process calls it, with the dense network's variables."""
    whole = fetch(dense)
    if is_writer():
        sqs_jax.save(workdir / "dense.sqs", whole, metadata=_metadata(config))


@progress("writing the files")
def export(
    workdir: Path,
    phase: "Phase",
    finetuned: Any,
    state: "TrainState",
    mean_state: Any,
    config: Any,
) -> None:
    """Write model.sqs (what ships), average.sqs, mean.sqs and finetune.sqs.

    All hold what a fresh process needs to run: params and the network's other collections. Every
    process calls it; what is spread over their devices is gathered leaf by leaf, and one writes.

    Args:
      workdir: where to.
      phase: the compression that made the state.
      finetuned: variables of the dense network trained on; None if it was not.
      state: the compression's final state.
      mean_state: the other collections of the network of posterior means.
      config: the experiment.
    """
    transform, posterior, evaluation = phase.transform, state.posterior, config.evaluation
    draw: Any = transform.sample  # or None: nothing to average
    compressed = fetch(transform.compress(posterior))

    @jax.jit
    def sample(posterior: Any, index: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        key = jax.random.fold_in(key, index)
        return draw(posterior, key, temperature=evaluation.average_temperature, hard=True)

    model_state = fetch(state.model_state)
    draws = [
        _shortened(codes_of(fetch(sample(posterior, np.int32(i))), compressed), config)
        for i in range(evaluation.average_samples if draw else 0)
    ]
    mean = fetch(transform.mean(posterior, temperature=evaluation.temperature))
    shipped_tree, options = shipped(compressed, model_state, config)
    exact = {**options, "dense_dtype": None}
    files: dict[str, tuple[Any, dict[str, Any]]] = {
        "model.sqs": (shipped_tree, options),
        "mean.sqs": ({"params": mean, **mean_state}, exact),
    }
    if draws:  # nothing folded: one for all
        files["average.sqs"] = {"draws": draws, **model_state}, options
    if finetuned is not None:
        files["finetune.sqs"] = fetch(finetuned), exact
    if is_writer():
        for name, (tree, options) in files.items():
            sqs_jax.save(workdir / name, tree, **options)


def shipped(params: Any, model_state: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """Return what model.sqs holds, and the options it is saved with.

    Args:
      params: compressed, or arrays.
      model_state: the network's other collections.
      config: the experiment.
    """
    options = {"dense_dtype": config.sqs.dense_dtype or None, "metadata": _metadata(config)}
    params, model_state = fold_statistics(_shortened(params, config), model_state)
    return {"params": params, **model_state}, options


def _metadata(config: Any) -> dict[str, Any]:
    return {"provenance": {"sqs_jax": sqs_jax.__version__}, "recipe": recipe(config)}


def _shortened(compressed: Any, config: Any) -> Any:
    """Leave out levels that no code has, and round the others to `config.sqs.dense_dtype`."""
    dtype = config.sqs.dense_dtype

    def short(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, sqs_jax.CompressedLeaf):
            return leaf
        leaf = _without_unused(leaf)
        codebook = _cast(path, leaf.codebook, dtype) if dtype else leaf.codebook
        return sqs_jax.CompressedLeaf(leaf.codes, codebook)

    return map_leaves(short, compressed)


def _without_unused(leaf: sqs_jax.CompressedLeaf) -> sqs_jax.CompressedLeaf:
    """Return a leaf of one codebook without the levels that no weight has, but for one."""
    if leaf.codebook.ndim > 2 or len(leaf.codebook) > 1:  # slices, windows: all have as many
        return leaf
    codes, levels = np.asarray(leaf.codes), np.asarray(leaf.codebook).reshape(-1)
    used = np.bincount(codes.ravel(), minlength=levels.size + 1)[1:] > 0
    used[0] |= not used.any()
    if used.all():
        return leaf
    dtype = np.uint8 if used.sum() <= 255 else np.uint16
    numbers = np.concatenate([[0], np.cumsum(used)]).astype(dtype)
    return sqs_jax.CompressedLeaf(numbers[codes], levels[used].reshape(1, -1))


def _cast(path: str, array: Any, dtype: str) -> np.ndarray:
    """Round a floating array to a narrower dtype, and return it in its own."""
    array, short = np.asarray(array), jnp.dtype(dtype)
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    if not floating or short.itemsize >= array.dtype.itemsize:
        return array
    with np.errstate(over="ignore"):
        found = array.astype(short).astype(array.dtype)
    if not np.isfinite(found[np.isfinite(array)]).all():
        raise ValueError(
            f"{path}: {np.abs(array).max()} is more than config.sqs.dense_dtype {dtype!r} holds; "
            "use one of a wider range, such as 'bfloat16'."
        )
    return found


def recipe(config: Any) -> dict[str, Any]:
    """Return what model.sqs says of its training: the settings that are not the defaults.

    Of this machine it says nothing, neither folders nor devices: the same run gives the same file
    wherever it is made.
    """
    defaults, chosen = (
        flatten_dict(json.loads(each.to_json_best_effort()), sep=".")
        for each in (base.experiment(), config)
    )
    told = {
        field: value
        for field, value in chosen.items()
        if value != defaults.get(field) and not field.startswith(_OF_THE_MACHINE)
    }
    if config.model.weights:
        told["model.weights"] = Path(config.model.weights).name
    return told


def deployed(phase: "Phase", state: "TrainState", config: Any) -> Any:
    """Return the variables that model.sqs must give a fresh process, from the trained posterior."""
    params, found = fetch(phase.transform.mode(state.posterior)), flat_leaves(state.posterior)

    def kept(path: str, weights: Any) -> Any:
        """Keep a leaf on grids or of several, whose values are not levels to be rounded."""
        composed = sqs_jax.is_compressed(found[path])
        composed = composed and not isinstance(found[path], sqs_jax.CompressedLeaf)
        return fetch(found[path]) if composed else weights

    params = map_leaves(kept, params)
    tree, options = shipped(params, fetch(state.model_state), config)
    return sqs_jax.materialize(as_stored(tree, options["dense_dtype"]))


def as_stored(tree: Any, dense_dtype: str | None) -> Any:
    """Round arrays, deployed weights among them, as a file with this `dense_dtype` does."""

    def rounded(path: str, leaf: Any) -> Any:
        if dense_dtype is None or sqs_jax.is_compressed(leaf):  # a normalisation's constants
            return leaf
        return _cast(path, leaf, dense_dtype)

    return map_leaves(rounded, tree)


def codes_of(draw: Any, compressed: Any) -> Any:
    """Write a K-level draw as codes of the codebook it was drawn from."""

    def encode(leaf: Any, weights: jax.Array) -> Any:
        if not isinstance(leaf, sqs_jax.CompressedLeaf):
            return weights
        levels = np.concatenate([[0], np.asarray(leaf.codebook).reshape(-1)])
        order = np.argsort(levels, kind="stable")
        place = np.searchsorted(levels[order], np.asarray(weights))
        return sqs_jax.CompressedLeaf(order[place].astype(leaf.codes.dtype), leaf.codebook)

    return jax.tree.map(
        encode, compressed, draw, is_leaf=lambda x: isinstance(x, sqs_jax.CompressedLeaf)
    )


def describe_distributions(path: Path, posterior: Any) -> None:
    """Write, as JSON, each compressed tensor's histogram and mixture, for the report's figures."""
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
