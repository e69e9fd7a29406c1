"""Say what an experiment would take, before any of it runs: bytes of files and devices, and time.

    python -m experiments.predict --config=experiments/configs/qwen2_5.py:0.5b --devices=8

Nothing is read, and of the experiment nothing computed: shapes alone, laid out as the training
would lay them out on so many devices, of which `config.mesh.fsdp` share what is trained.
Activations are an upper bound: all that a block computes on its way forward, as if nothing of it
were fused. A decoder that labels sentences counts as one that predicts tokens; second moments of
inputs are not counted.

Seconds are of one device of this machine, whose speed a product of two matrices tells: what a
calibration or a training step multiplies, at that speed or half of it, and what the host does for
every weight. They are good to a factor of two; compilation is not in them.
"""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.sharding import AbstractMesh, AxisType
from ml_collections import config_flags

import sqs_jax
from experiments.calibration.stages import stages_of, values
from experiments.importers.huggingface import decoder_config, encoder_config
from experiments.models.decoder import Decoder
from experiments.models.encoder import Encoder
from experiments.problem import described
from experiments.training.layout import AXES, lay_out
from experiments.training.phases import phases
from experiments.training.step import init_state

# About what a Llama of 6.3 M weights took, see docs/results.md.
_SLOWER = 2.0  # products of a model than one of large squares
_GROUPS = 4  # of a block's layers that share inputs
_PASSES = 6  # that choose a kernel's codes
_FISHER_BATCHES = 16
_LONGEST = 65_536  # inputs of a kernel; more has an embedding alone
_HOST_SECONDS = 8e-6  # a weight: allocation and coding
_POSTERIOR_SECONDS = 1e-7  # a weight, in a step

_SEPARATOR = 102  # of the two segments of a BERT; shapes do not depend on it


def predict(config: Any, devices: int) -> dict[str, int]:
    """Return bytes by what they are of, and the number of weights; nothing is computed.

    Args:
      config: of a language model, `described`.
      devices: of the training.

    Raises:
      ValueError: for images, or if the mesh does not fit.
    """
    parts = devices * config.accumulate
    if devices % config.mesh.fsdp or config.batch_size % parts:
        raise ValueError(
            f"--devices={devices} must be a multiple of config.mesh.fsdp={config.mesh.fsdp}, and, "
            f"times config.accumulate={config.accumulate}, divide "
            f"config.batch_size={config.batch_size}."
        )
    model, variables, examples = _shapes(config)
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables))
    here = jax.ShapeDtypeStruct((config.batch_size // parts, config.data.length), jnp.int32)
    stages = _costs(model, variables, here)
    activations = sum(stage.made for stage in stages)
    if config.model.remat:
        activations = sum(stage.output for stage in stages) + max(stage.made for stage in stages)
    calibrated = _costs(model, variables, examples)
    return {
        "weights": weights,
        "dense file": 4 * weights,
        "compressed file": config.sqs.target_bytes,
        "training, per device": _trained(config, variables, devices) + activations,
        "calibration, one device": max(stage.made for stage in calibrated)
        + 2 * max(stage.weights for stage in calibrated),
    }


def predict_seconds(config: Any) -> dict[str, float]:
    """Return seconds on one device of this machine, by what they are of.

    Args:
      config: as of `predict`.
    """
    model, variables, examples = _shapes(config)
    stages, rate = _costs(model, variables, examples), products_per_second()
    return {
        "calibration": _calibration_seconds(config, variables, stages, rate),
        "training step": _step_seconds(variables, stages, rate),
    }


def _shapes(config: Any) -> tuple[Any, Any, jax.ShapeDtypeStruct]:
    """Return a language model, its variables and its examples, the last two as shapes."""
    if config.data.kind == "images":
        raise ValueError("config.data.kind is 'images'; predictions are of language models.")
    shape = config.model.shape.to_dict()
    if not shape:
        raise ValueError("config.model.shape is empty; give the fields of a config.json.")
    dtype = jnp.dtype(config.model.dtype)
    model: Any
    if shape["model_type"] == "bert":
        classes = None if config.data.kind == "answers" else 2
        model = Encoder(encoder_config(shape, _SEPARATOR), classes, dtype=dtype)
    else:
        model = Decoder(decoder_config(shape), dtype=dtype)
    examples = jax.ShapeDtypeStruct((config.batch_size, config.data.length), jnp.int32)
    return model, jax.eval_shape(model.init, jax.random.key(0), examples), examples


def products_per_second() -> float:
    """Measure how many multiplications in products of matrices this machine does in a second."""
    side = 1024
    square = jnp.ones((side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    fastest = math.inf
    for _ in range(5):
        started = time.perf_counter()
        product(square, square).block_until_ready()
        fastest = min(fastest, time.perf_counter() - started)
    return side**3 / fastest


def _calibration_seconds(config: Any, variables: Any, stages: list["_Cost"], rate: float) -> float:
    """Estimate the time of experiments.calibrate."""
    batches = max(config.calibration.examples // config.batch_size, 1)
    tokens = batches * config.batch_size * config.data.length
    forward = sum(stage.products for stage in stages)
    # each layer's inputs are taken by running its stage, of both networks
    products = 2 * (_GROUPS + 1) * batches * forward
    if config.sqs.sensitivity == "fisher":
        products += 3 * _FISHER_BATCHES * forward
    weights = 0
    for leaf in jax.tree.leaves(variables["params"]):
        weights += leaf.size
        if leaf.ndim == 2:
            inputs, outputs = leaf.shape
            if inputs < _LONGEST:  # an embedding is read by no product
                products += 2 * tokens * inputs**2 + _PASSES * inputs**2 * outputs
    return _SLOWER * products / rate + _HOST_SECONDS * weights


def _step_seconds(variables: Any, stages: list["_Cost"], rate: float) -> float:
    """Estimate the time of a step: forward and backward, the teacher, and the posterior."""
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables))
    return _SLOWER * 4 * sum(s.products for s in stages) / rate + _POSTERIOR_SECONDS * weights


def _trained(config: Any, variables: Any, devices: int) -> int:
    """Count state, gradient and teacher of the compression on one device."""
    fsdp = config.mesh.fsdp
    kind = (AxisType.Auto,) * len(AXES)
    mesh: Any = AbstractMesh((devices // fsdp, fsdp), AXES, axis_types=kind)
    phase = phases(config, config.batch_size)[-1]
    state = jax.eval_shape(lambda v: init_state(phase, v), variables)
    layout = lay_out(state, state.posterior, mesh, config)
    trainable, _ = sqs_jax.partition(state.posterior, train=phase.learning_rate)
    gradient = lay_out(trainable, state.posterior, mesh, config)
    teacher = lay_out(variables, variables["params"], mesh, config)
    return _bytes(state, layout) + _bytes(trainable, gradient) + _bytes(variables, teacher)


def _bytes(tree: Any, layout: Any) -> int:
    """Count what one device holds of arrays that are laid out."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in pairs)


class _Cost(NamedTuple):
    """Bytes that a stage computes on its way, of its output and weights; its multiplications."""

    made: int
    output: int
    weights: int
    products: int


def _costs(model: Any, variables: Any, examples: Any) -> list[_Cost]:
    """Count what the stages compute, one after the other."""
    costs, x = [], examples
    known: dict[Any, tuple[int, int, Any]] = {}  # blocks are alike
    for stage in stages_of(model, variables):
        params = {name: variables["params"][name] for name in stage.names}
        key = stage.apply, x.shape
        if key not in known:
            traced, out = jax.make_jaxpr(stage.apply, return_shape=True)(values(params), x)
            made = sum(map(_size, (v.aval for v in _made(traced.jaxpr))))
            known[key] = made, _products(traced.jaxpr), out
        made, products, x = known[key]
        weights = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
        costs.append(_Cost(made, _size(x), weights, products))
    return costs


def _size(array: Any) -> int:
    return int(array.size) * array.dtype.itemsize


def _products(jaxpr: Any) -> int:
    """Count the multiplications of a program's products of matrices."""
    count = 0
    for equation in jaxpr.eqns:
        count += sum(_products(p.jaxpr) for p in equation.params.values() if hasattr(p, "jaxpr"))
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            count += equation.outvars[0].aval.size * math.prod(left[axis] for axis in summed)
    return count


def _made(jaxpr: Any) -> list[Any]:
    """List the variables that a program makes, those of its sub-programs in their place."""
    found: list[Any] = []
    for equation in jaxpr.eqns:
        inner = [p.jaxpr for p in equation.params.values() if hasattr(p, "jaxpr")]
        found += [v for each in inner for v in _made(each)] if inner else equation.outvars
    return found


def main(_: Any) -> None:
    given = flags.FLAGS
    if not given.config:
        raise app.UsageError("--config is needed.")
    logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
    config = described(given.config)
    for name, count in predict(config, given.devices).items():
        unit = "" if name == "weights" else f"  {count / 2**30:8.3f} GiB"
        print(f"{name:26} {count:16,}{unit}")
    for name, seconds in predict_seconds(config).items():
        print(f"{name:26} {seconds:16,.2f}  seconds on one device here")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment.", lock_config=True)
    flags.DEFINE_integer("devices", 1, "Devices of the training.", lower_bound=1)
    app.run(main)
