"""Second moments of the inputs of a linear layer, from which its codes are chosen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["InputMoments", "damped", "unusable"]

_DAMPING = 0.01  # share of the mean second moment, as in GPTQ
_ASYMMETRY = 1e-3  # largest relative difference that rounding makes of two equal sums


class InputMoments(NamedTuple):
    """Second moments of the inputs of a linear layer.

    Attributes:
        second: E[x x^T] of the inputs x of the compressed network, [I, I].
        cross: E[x d^T] with the inputs d of the network that is imitated, [I, I]; None if both
            networks have the same inputs.
        missing: E[x m^T], [I, O], of a difference m that the outputs should compensate, such as the
            error of another summand of a residual sum; None if there is no difference.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> inputs = jnp.array([[1.0, 2.0], [3.0, 4.0]])  # of two examples
        >>> moments = sqs_jax.InputMoments(second=inputs.T @ inputs / 2)
        >>> moments.second.tolist()
        [[5.0, 7.0], [7.0, 10.0]]
    """

    second: jax.Array
    cross: jax.Array | None = None
    missing: jax.Array | None = None


def damped(second: jax.Array) -> jax.Array:
    """Add a hundredth of the mean second moment to the diagonal, as GPTQ does.

    Args:
        second: Second moments, [I, I], positive semidefinite.

    Returns:
        Positive definite matrix, [I, I].
    """
    mean = jnp.mean(jnp.diagonal(second))
    return second + (_DAMPING * mean + jnp.finfo(second.dtype).tiny) * jnp.eye(len(second))


def unusable(second: jax.Array) -> str | None:
    """Return the reason why a matrix has no use as second moments, or None.

    Args:
        second: Matrix, [I, I].

    Returns:
        Reason and remedy for an error message; None for second moments of any inputs.
    """
    matrix = jnp.asarray(second, jnp.float32)
    reason = None
    if not bool(jnp.isfinite(matrix).all()):
        reason = "are not finite"
    elif bool(jnp.abs(matrix - matrix.T).max() > _ASYMMETRY * jnp.abs(matrix).max()):
        reason = "are not symmetric"
    elif not bool(jnp.isfinite(jnp.linalg.cholesky(damped(matrix))).all()):
        reason = "have a negative eigenvalue"
    return reason and f"second moments {reason}; give x.T @ x / len(x) of the layer's inputs x"
