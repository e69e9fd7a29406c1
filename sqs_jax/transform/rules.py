"""Rules that select the leaves of a tree to compress, and set how.

A path joins the keys of a leaf by slashes: "layers/0/kernel".
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact.leaves import MAX_VALUES
from sqs_jax.distribution import SubDistribution, Windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Compression settings for the leaves whose path matches a pattern.

    Of a sequence of rules, the first that matches a path applies.

    Attributes:
        pattern: Regular expression that must match the whole path of a leaf.
        components: Number K of Gaussians per window, 1 to 65,535; None leaves the leaf dense.
        windows: Split of the weights by value, a `Windows`.
        min_ndim: Least number of dimensions of a compressed leaf, stacked axes not counted; leaves
            of fewer dimensions stay dense.
        prunable: Whether `prune` may prune the leaf.
        structure: Pair (n, m): n of every m weights along axis -2 are kept. None prunes without
            a pattern.
        stacked: Number of leading axes whose slices each get their own sub-distribution.

    Raises:
        ValueError: If a field is out of range or the pattern is no regular expression.

    Example:
        >>> import sqs_jax
        >>> rule = sqs_jax.Rule(pattern="layers/.*/kernel", components=4)
        >>> rule.matches("layers/0/kernel"), rule.matches("head/kernel")
        (True, False)
    """

    pattern: str = ".*"
    components: int | None = 16
    windows: Windows = Windows()
    min_ndim: int = 2
    prunable: bool = True
    structure: tuple[int, int] | None = None
    stacked: int = 0

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"Rule.pattern is {self.pattern!r}, no regular expression: {error}."
            ) from error
        if not isinstance(self.windows, Windows):
            raise ValueError(f"Rule.windows is {self.windows!r}; it must be a sqs_jax.Windows.")
        if self.components is not None:
            if type(self.components) is not int or not 1 <= self.components <= MAX_VALUES:
                raise ValueError(
                    f"Rule.components is {self.components!r}; it must be an int from 1 to "
                    f"{MAX_VALUES}, or None to leave matching leaves dense."
                )
            if self.components * self.windows.count > MAX_VALUES:
                raise ValueError(
                    f"Rule has {self.windows.count} windows of {self.components} components; a "
                    f"code holds at most {MAX_VALUES} values: use fewer of either."
                )
        for name in ("min_ndim", "stacked"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"Rule.{name} is {value!r}; it must be an int >= 0.")
        if self.structure is not None:
            n_of_m = self.structure
            is_pair = isinstance(n_of_m, tuple) and len(n_of_m) == 2
            if not (is_pair and all(type(x) is int for x in n_of_m) and 0 < n_of_m[0] <= n_of_m[1]):
                raise ValueError(
                    f"Rule.structure is {n_of_m!r}; it must be (n, m) with 0 < n <= m, or None."
                )

    def matches(self, path: str) -> bool:
        """Return whether the pattern matches the whole path."""
        return re.fullmatch(self.pattern, path) is not None

    def compresses(self, leaf: Any) -> bool:
        """Return whether the rule compresses a leaf that the pattern matches."""
        return self.components is not None and np.ndim(leaf) - self.stacked >= self.min_ndim

    def init_leaf(self, path: str, leaf: Any, **options: Any) -> SubDistribution:
        """Initialize the sub-distribution of a leaf.

        Args:
            path: Path of the leaf, for error messages.
            leaf: Weights, a floating array; `compresses(leaf)` holds.
            **options: Further arguments of `SubDistribution.init`.

        Returns:
            The sub-distribution.

        Raises:
            ValueError: If the leaf has no floating dtype, is not finite, has no slices, or does
                not fit the structure.
        """
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{path}: rule {self.pattern!r} would compress a leaf of dtype {leaf.dtype}; only "
                "real floating weights have a sub-distribution. Put a rule with components=None "
                "that matches this path before it."
            )
        if not isinstance(leaf, jax.core.Tracer):
            require_finite(path, leaf)
        if 0 in leaf.shape[: self.stacked]:
            raise ValueError(
                f"{path}: no slice of shape {leaf.shape} is stacked along its first {self.stacked} "
                "axes, so there is nothing to compress. Put a rule with components=None before."
            )
        if self.structure is not None:
            m = self.structure[1]
            if leaf.ndim - self.stacked < 2 or leaf.shape[-2] % m:
                raise ValueError(
                    f"{path}: structure {self.structure} needs an axis -2 whose length is a "
                    f"multiple of {m}; the shape is {leaf.shape}. Use another structure or None."
                )
        assert self.components is not None  # by `compresses`
        return SubDistribution.init(
            leaf,
            components=self.components,
            windows=self.windows,
            prunable=self.prunable,
            structure=self.structure,
            stacked=self.stacked,
            **options,
        )

    def init_layer(self, path: str, weights: jax.Array) -> Any:
        """Initialize the weights of a layer that holds this rule.

        The pattern and `stacked` are not used. A layer is one slice: a scan over layers adds the
        same leading axes to the weights and to their sub-distribution.

        Args:
            path: Path of the weights, for error messages.
            weights: Array that the layer's initializer drew.

        Returns:
            A SubDistribution, or the weights themselves if the rule leaves them dense.
        """
        rule = dataclasses.replace(self, stacked=0)
        return rule.init_leaf(path, weights) if rule.compresses(weights) else weights


DEFAULT_RULES = (Rule(),)


def deployed(value: Any) -> Any:
    """Return the deployed weights: the mode of a SubDistribution, or the array itself."""
    return value.mode() if is_sub_distribution(value) else value


def is_sub_distribution(node: Any) -> bool:
    """Return whether a node of a posterior is a compressed tensor's SubDistribution."""
    return isinstance(node, SubDistribution)


def require_positive(name: str, value: jax.typing.ArrayLike) -> None:
    """Raise ValueError unless a temperature is > 0; traced values pass unchecked."""
    if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name} is {value}; it must be > 0. For its limit at 0 use `mode`.")


def total(parts: list[jax.Array]) -> jax.Array:
    """Sum scalars of the leaves in float32, or in float64 if any scalar is float64."""
    dtype = jnp.float64 if any(part.dtype == jnp.float64 for part in parts) else jnp.float32
    return sum((part.astype(dtype) for part in parts), start=jnp.zeros((), dtype))


def require_finite(path: str, leaf: Any) -> None:
    """Raise ValueError if any weight of a leaf is NaN or infinite."""
    # Count on the leaf's devices: a sharded array may exceed the host, or span several hosts.
    array = jnp if isinstance(leaf, jax.Array) else np
    count = int(array.sum(~array.isfinite(leaf)))
    if count:
        raise ValueError(
            f"{path}: {count} of {np.size(leaf)} weights are not finite; compression needs a "
            "network that works. Repair them, or leave the leaf dense with a rule with "
            "components=None."
        )


def require_whole(path: str, leaf: SubDistribution) -> SubDistribution:
    """Return the leaf, or raise ValueError if `partition` has removed some of its fields."""
    fields = (f.name for f in dataclasses.fields(leaf) if not f.metadata.get("static"))
    if any(getattr(leaf, field) is None for field in fields):
        raise ValueError(
            f"{path}: one part of a partitioned posterior; pass sqs_jax.combine(trainable, fixed)."
        )
    return leaf


def path_string(path: Sequence[Any]) -> str:
    """Return a key path as a string, e.g. "layers/0/kernel"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def map_tree(
    function: Callable[..., Any], tree: Any, *rest: Any, none_is_leaf: bool = False
) -> Any:
    """Map `function(path, leaf, *rest)` over a tree whose leaves include SubDistributions."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_string(path), *leaves),
        tree,
        *rest,
        is_leaf=lambda x: is_sub_distribution(x) or (none_is_leaf and x is None),
    )


def flatten(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Return (path, leaf) pairs and the structure; SubDistributions are leaves."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_sub_distribution)
    return [(path_string(path), leaf) for path, leaf in pairs], treedef


def check_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules as a tuple, or raise TypeError for anything else."""
    rules = (rules,) if isinstance(rules, Rule) else tuple(rules)
    if not rules or not all(isinstance(rule, Rule) for rule in rules):
        raise TypeError(f"rules must be a non-empty sequence of sqs_jax.Rule, not {rules!r}.")
    return rules


def map_assigned(
    function: Callable[[str, Any, Rule | None], Any], rules: Sequence[Rule], tree: Any
) -> Any:
    """Map `function(path, leaf, rule)` over a tree."""
    pairs, treedef = flatten(tree)
    assigned = assign(rules, [path for path, _ in pairs])
    return treedef.unflatten([function(*pair, r) for pair, r in zip(pairs, assigned, strict=True)])


def assign(rules: Sequence[Rule], paths: Sequence[str]) -> list[Rule | None]:
    """Return for each path the first rule that matches, or None.

    Args:
        rules: Rules, in order of precedence.
        paths: Paths of the leaves.

    Returns:
        List of as many rules, or None, as there are paths.

    Raises:
        ValueError: If a rule's pattern matches none of the paths.
    """
    for rule in rules:
        if not any(rule.matches(path) for path in paths):
            shown = ", ".join(paths[:8]) + (", ..." if len(paths) > 8 else "")
            raise ValueError(
                f"Rule pattern {rule.pattern!r} matches no leaf. A pattern must match a whole "
                f"path; the paths here are: {shown or '(an empty tree)'}."
            )
    return [next((rule for rule in rules if rule.matches(path)), None) for path in paths]
