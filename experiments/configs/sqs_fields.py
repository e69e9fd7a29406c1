"""Fields of `config.sqs`: their values, and the methods that use them."""

import difflib
import math
import re
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax.traverse_util import flatten_dict

import sqs_jax
from experiments.configs import base

METHODS = ("spike_slab", "dgms", "codeq", "codeq_mixed")
ORDERS = ("together", "prune_first", "quantise_first")
# Keys of experiments.training.ablations.MISTAKES.
MISTAKES = ("half_bernoulli", "unscaled_kl", "binned", "untrained_scores")
# Keys of PEERS, the peers of experiments.compare whose codes a training can keep.
PEERS = (
    "rtn", "rtn-groups", "gptq", "gptq-groups", "awq", "awq-groups", "spqr", "obq", "obc-8",
    "obc-16", "sparsegpt", "wanda", "decomposition", "prune-kmeans", "kmeans-prune",
)  # fmt: skip


class Constraint(NamedTuple):
    """Constraint on the value of a field.

    Attributes:
      fits: Function that returns whether a value is allowed.
      requirement: End of the sentence "it must ...".
    """

    fits: Callable[[Any], bool]
    requirement: str


def number(fits: Callable[[Any], bool], requirement: str, *, integer: bool = False) -> Constraint:
    """Make the constraint of a number, which excludes booleans, infinities and NaN."""
    kind = Integral if integer else Real

    def allowed(x: Any) -> bool:
        return isinstance(x, kind) and not isinstance(x, bool) and math.isfinite(x) and fits(x)

    return Constraint(allowed, requirement)


def one_of(*choices: Any) -> Constraint:
    """Make the constraint of a field with few values."""
    return Constraint(lambda x: x in choices, f"be one of {', '.join(map(repr, choices))}")


POSITIVE = number(lambda x: x > 0, "be positive")
NOT_NEGATIVE = number(lambda x: x >= 0, "not be negative")
FRACTION = number(lambda x: 0 <= x <= 1, "lie in [0, 1]")
BELOW_ONE = number(lambda x: 0 <= x < 1, "lie in [0, 1)")
COUNT = number(lambda x: x >= 1, "be an integer of at least 1", integer=True)
COUNT_OR_ZERO = number(lambda x: x >= 0, "not be negative, and be an integer", integer=True)


def _is_expression(pattern: Any) -> bool:
    try:
        re.compile(pattern)
    except (re.error, TypeError):
        return False
    return True


def _is_floating(dtype: Any) -> bool:
    try:
        return dtype == "" or bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))
    except TypeError:
        return False


_CONSTRAINTS = {
    "recipe": Constraint(lambda x: isinstance(x, str), "be a name"),
    "method": one_of(*METHODS),
    "mistakes": Constraint(
        lambda x: isinstance(x, tuple | list) and set(x) <= set(MISTAKES),
        f"have names of {', '.join(map(repr, MISTAKES))} only",
    ),
    "order": one_of(*ORDERS),
    "epochs": POSITIVE,
    "generated": COUNT_OR_ZERO,
    "pattern": Constraint(_is_expression, "be a regular expression of paths"),
    "target_bytes": COUNT_OR_ZERO,
    "sensitivity": one_of("scale", "fisher"),
    "start": one_of("weights", "calibration", *PEERS),
    "components": COUNT,
    "window_kind": one_of("single", "equal", "outlier"),
    "window_count": COUNT,
    "prior_inclusion": number(lambda x: 0 < x < 1, "lie in (0, 1)"),
    "prior_scale": POSITIVE,
    "kl_weight": NOT_NEGATIVE,
    "estimator": one_of("mean", "sample", "mode"),
    "temperature_start": POSITIVE,
    "temperature_end": POSITIVE,
    "relaxation": POSITIVE,
    **{f"learning_rate.{x}": NOT_NEGATIVE for x in ("loc", "gate", "means", "spread", "dense")},
    "warmup": BELOW_ONE,
    "latent_end": FRACTION,
    "weight_decay": NOT_NEGATIVE,
    "gate_end": FRACTION,
    "rate_weight": NOT_NEGATIVE,
    "reestimate": COUNT_OR_ZERO,
    "sparsity": BELOW_ONE,
    "scope": one_of("global", "tensor"),
    "saliency": one_of("magnitude", "gate", "activation"),
    "prune_start": FRACTION,
    "prune_end": FRACTION,
    "prune_freeze": FRACTION,
    "prune_every": COUNT,
    "refit": one_of(True, False),
    "distill_weight": FRACTION,
    "distill_temperature": POSITIVE,
    "dense_dtype": Constraint(
        _is_floating, "be a floating dtype, such as 'float16' or 'bfloat16', or empty: exact"
    ),
}

# The peers learn the zeros: no budget, no schedule of a mask, no gates, no prior, no windows.
_UNUSED_BY_PEERS = {
    "mistakes", "order", "target_bytes", "sensitivity", "start", "window_kind", "window_count",
    "prior_inclusion", "prior_scale", "relaxation", "learning_rate.gate", "gate_end",
    "rate_weight", "sparsity", "scope", "saliency", "prune_start", "prune_end", "prune_freeze",
    "prune_every", "refit",
}  # fmt: skip
UNUSED = {
    "spike_slab": set[str](),
    "dgms": _UNUSED_BY_PEERS | {"kl_weight"},
    # A uniform quantizer has no component means, and no responsibilities.
    "codeq": _UNUSED_BY_PEERS | {"learning_rate.means", "temperature_start", "temperature_end"},
    "codeq_mixed": _UNUSED_BY_PEERS
    | {"learning_rate.means", "temperature_start", "temperature_end"},
}


def problems(sqs: Any) -> Iterator[str]:
    """Describe every unknown, missing, unused or bad field of `config.sqs`.

    Args:
      sqs: ConfigDict of the compression, see `base.default_recipe`.

    Yields:
      A sentence with the field, the value and the remedy.
    """
    values, defaults = _flat(sqs), _flat(base.default_recipe())
    for field, value in values.items():
        if field not in defaults:
            near = difflib.get_close_matches(field, defaults, n=1)
            remedy = f"use config.sqs.{near[0]}" if near else "remove it"
            yield f"config.sqs.{field} is {value!r}, but config.sqs has no such field: {remedy}."
        elif not _CONSTRAINTS[field].fits(value):
            yield f"config.sqs.{field} is {value!r}; it must {_CONSTRAINTS[field].requirement}."
    for field in sorted(defaults.keys() - values.keys()):
        yield (
            f"config.sqs.{field} is missing: start from base.default_recipe(), where it is "
            f"{defaults[field]!r}."
        )
    method: Any = values.get("method")
    for field in sorted(UNUSED[method]) if method in METHODS else ():
        if field in values and values[field] != defaults[field]:
            yield (
                f"config.sqs.{field} is {values[field]!r}, but method {method!r} does not use it: "
                f"use its default, {defaults[field]!r}."
            )
    if problem := _rule_problem(values):
        yield problem
    if method in METHODS and method != "spike_slab":
        if values.get("estimator") != "mean":
            yield (
                f"config.sqs.estimator is {values.get('estimator')!r}, but method {method!r} "
                "trains by 'mean': use 'mean'."
            )
        if values.get("learning_rate.spread") == 0:
            yield (
                f"config.sqs.learning_rate.spread is {values['learning_rate.spread']}, but method "
                f"{method!r} learns what it prunes: give a positive rate."
            )


def _rule_problem(values: dict[str, Any]) -> str | None:
    """Describe why levels and windows do not fit each other; None if they fit."""
    fields = "components", "window_kind", "window_count"
    if not all(field in values and _CONSTRAINTS[field].fits(values[field]) for field in fields):
        return None
    components, kind, count = (values[field] for field in fields)
    try:
        sqs_jax.Rule(components=components, windows=sqs_jax.Windows(kind=kind, count=count))
    except ValueError as error:
        return (
            f"config.sqs.window_count is {count}, with config.sqs.window_kind {kind!r} and "
            f"config.sqs.components {components}: {error}"
        )
    return None


def is_complete(sqs: Any) -> bool:
    """Return whether `config.sqs` has all fields, of the types of the defaults."""
    values = _flat(sqs)

    def similar(value: Any, default: Any) -> bool:
        numbers = isinstance(value, Real) and isinstance(default, Real)
        return numbers or isinstance(value, type(default))

    defaults = _flat(base.default_recipe())
    return all(similar(values.get(field), default) for field, default in defaults.items())


def require_valid(sqs: Any) -> None:
    """Raise ValueError if a field of `config.sqs` is unknown, missing, unused or bad.

    Args:
      sqs: ConfigDict of the compression, see `base.default_recipe`.

    Raises:
      ValueError: The message lists every problem with its remedy.
    """
    if sentences := list(problems(sqs)):
        raise ValueError("config.sqs cannot be used:\n  " + "\n  ".join(sentences))


def reset_unused(sqs: Any) -> None:
    """Set the fields that the method of `config.sqs` does not use to their defaults."""
    defaults = _flat(base.default_recipe())
    sqs.update_from_flattened_dict({field: defaults[field] for field in UNUSED[sqs.method]})


def _flat(sqs: Any) -> dict[str, Any]:
    """List the fields by name; JSON, which keeps the config of a run, has lists for tuples."""
    fields = flatten_dict(sqs.to_dict(), sep=".")
    return {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
