"""Say what an experiment would take, before any of it runs: bytes of files and devices, and time.

    python -m experiments.predict --config=experiments/configs/qwen2_5.py:0.5b --devices=8

Nothing is read but images of datasets that are not known here, and of the experiment nothing
computed: shapes alone, laid out as the training would lay them out on so many devices, of which
`config.mesh.fsdp` share what is trained. Where `config.sqs.target_bytes` is 0 the file's size is
that of independent codes at the wanted sparsity, all K levels equally likely: at most, about.
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
from experiments import data
from experiments.calibration.stages import stages_of, values
from experiments.importers.huggingface import decoder_config, encoder_config
from experiments.models import build_model
from experiments.models.decoder import Decoder
from experiments.models.encoder import Encoder
from experiments.task.task import described
from experiments.training.phases import phases
from experiments.training.sharding import AXES, lay_out
from experiments.training.step import init_state
from experiments.trees import flat_leaves, other_collections

# About what a Llama of 6.3 M weights took, see docs/results.md.
_SLOWER = 2.0  # products of a model than one of large squares
_GROUPS = 4  # of a block's layers that share inputs
_PASSES = 6  # that choose a kernel's codes
_FISHER_BATCHES = 16
_LONGEST = 65_536  # inputs of a kernel; more has an embedding alone
_HOST_SECONDS = 8e-6  # a weight: allocation and coding
_POSTERIOR_SECONDS = 1e-7  # a weight, in a step

_SEPARATOR = 102  # of the two segments of a BERT; shapes do not depend on it
_IMAGES = {  # by name of the dataset: shape of an image, classes
    "digits": ((8, 8, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
}
_PRODUCTS = ("dot_general", "conv_general_dilated")


def predict(config: Any, devices: int) -> dict[str, int]:
    """Return bytes by what they are of, and the number of weights; nothing is computed.

    Args:
      config: of a training, `described`.
      devices: of the training.

    Raises:
      ValueError: if the mesh does not fit, or a language model has no shape.
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
    here = jax.ShapeDtypeStruct((config.batch_size // parts, *examples.shape[1:]), examples.dtype)
    stages = _costs(model, variables, here)
    activations = sum(stage.made for stage in stages)
    if config.model.remat:
        activations = sum(stage.output for stage in stages) + max(stage.made for stage in stages)
    calibrated = _costs(model, variables, examples)
    return {
        "weights": weights,
        "dense file": 4 * weights,
        "compressed file": config.sqs.target_bytes or _file_bytes(config, variables),
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
    """Return a network, its variables and a batch of examples, the last two as shapes."""
    model: Any
    if config.data.kind == "images":
        shape, classes = _image(config)
        model = build_model(config.model, classes)
        examples = jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.float32)
    else:
        model = _language_model(config)
        examples = jax.ShapeDtypeStruct((config.batch_size, config.data.length), jnp.int32)
    return model, jax.eval_shape(model.init, jax.random.key(0), examples), examples


def _image(config: Any) -> tuple[tuple[int, ...], int]:
    """Return the shape of an image and the number of classes."""
    if config.data.name in _IMAGES:
        return _IMAGES[config.data.name]
    splits = data.load(config.data, config.seed)
    return splits.train.examples.shape[1:], splits.num_classes


def _language_model(config: Any) -> Any:
    shape = config.model.shape.to_dict()
    if not shape:
        raise ValueError(
            "config.model.shape is empty; give the fields of a config.json, or the weights that "
            "have them as config.model.weights."
        )
    dtype = jnp.dtype(config.model.dtype)
    if shape["model_type"] == "bert":
        classes = None if config.data.kind == "answers" else 2
        return Encoder(encoder_config(shape, _SEPARATOR), classes, dtype=dtype)
    return Decoder(decoder_config(shape), dtype=dtype)


def _file_bytes(config: Any, variables: Any) -> int:
    """Estimate the file of a training towards a sparsity."""
    rule, sparsity = sqs_jax.Rule(pattern=config.sqs.pattern), config.sqs.sparsity
    entropy = sum(-p * math.log2(p) for p in (sparsity, 1 - sparsity) if p)
    bits = entropy + (1 - sparsity) * math.log2(config.sqs.components)
    dense = jnp.dtype(config.sqs.dense_dtype or jnp.float32).itemsize
    taken = 0.0
    for path, leaf in flat_leaves(variables["params"]).items():
        compressed = rule.matches(path) and rule.compresses(leaf)
        taken += leaf.size * (bits / 8 if compressed else dense)
    return round(taken)


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
    rows = batches * config.batch_size
    if config.data.kind != "images":
        rows *= config.data.length
    forward = sum(stage.products for stage in stages)
    # each layer's inputs are taken by running its stage, of both networks
    products = 2 * (_GROUPS + 1) * batches * forward
    products += 2 * batches * sum(stage.moments for stage in stages)
    if config.sqs.sensitivity == "fisher":
        products += 3 * _FISHER_BATCHES * forward
    weights = 0
    for leaf in jax.tree.leaves(variables["params"]):
        weights += leaf.size
        inputs, outputs = math.prod(leaf.shape[:-1]), leaf.shape[-1]
        if leaf.ndim > 1 and inputs < _LONGEST:  # an embedding is read by no product
            products += _PASSES * inputs**2 * outputs
            if leaf.ndim == 2:
                products += 2 * rows * inputs**2
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
    """What a stage takes.

    Attributes:
      made: bytes that it computes on its way.
      output: bytes of its output.
      weights: bytes.
      products: its multiplications.
      moments: multiplications of the second moments of what its convolutions see.
    """

    made: int
    output: int
    weights: int
    products: int
    moments: int


def _costs(model: Any, variables: Any, examples: Any) -> list[_Cost]:
    """Count what the stages compute, one after the other."""
    costs, x = [], examples
    # statistics, few and small, are no arguments of a stage: they have to be values
    drawn = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype), other_collections(variables)
    )
    variables = {"params": variables["params"], **drawn}
    known: dict[Any, tuple[int, int, int, Any]] = {}  # blocks are alike
    for stage in stages_of(model, variables):
        params = {name: variables["params"][name] for name in stage.names}
        key = stage.apply, x.shape
        if key not in known:
            traced, out = jax.make_jaxpr(stage.apply, return_shape=True)(values(params), x)
            made = sum(map(_size, (v.aval for v in _made(traced.jaxpr))))
            found = _products(traced.jaxpr)
            moments = sum(n * inputs // outputs for n, inputs, outputs in found if outputs)
            known[key] = made, sum(n for n, *_ in found), moments, out
        made, products, moments, x = known[key]
        weights = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
        costs.append(_Cost(made, _size(x), weights, products, moments))
    return costs


def _size(array: Any) -> int:
    return int(array.size) * array.dtype.itemsize


def _products(jaxpr: Any) -> list[tuple[int, int, int]]:
    """List a program's products: multiplications, and inputs and outputs of a convolution, or 0."""
    found = []
    for equation in jaxpr.eqns:
        for inner in _inner(equation):
            found += _products(inner)
        if equation.primitive.name not in _PRODUCTS:
            continue
        size = equation.outvars[0].aval.size
        left, right = (each.aval.shape for each in equation.invars)
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            found.append((size * math.prod(left[axis] for axis in summed), 0, 0))
        else:  # a kernel [height, width, inputs, outputs]
            *seen, outputs = right
            found.append((size * math.prod(seen), math.prod(seen), outputs))
    return found


def _inner(equation: Any) -> list[Any]:
    """List the programs within an equation: of a call, a loop, a function with its own gradient."""
    return [p.jaxpr for p in equation.params.values() if hasattr(p, "jaxpr")]


def _made(jaxpr: Any) -> list[Any]:
    """List the variables that a program makes, those of its sub-programs in their place."""
    found: list[Any] = []
    for equation in jaxpr.eqns:
        inner = _inner(equation)
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
