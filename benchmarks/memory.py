"""Transient memory of a compiled training step: no buffer of N x K, whatever the estimator."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import sqs_jax

_SIZE = 1 << 22  # N, weights of one tensor


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print, per estimator and K, the compiled step's transient memory in floats per weight."""
    rows = []
    print(f"N = {_SIZE:,} weights, value and gradient of the ELBO of a linear model")
    print(f"{'estimator':>10} {'K':>4} {'transient MB':>13} {'floats per weight':>18}")
    for estimator in ("mean", "sample", "mode"):
        for components in (16, 64):
            size = transient_bytes(_SIZE, components, estimator)
            row = {
                "estimator": estimator,
                "components": components,
                "transient_bytes": size,
                "floats_per_weight": size / (4 * _SIZE),
            }
            rows.append(row)
            print(
                f"{estimator:>10} {components:>4} {size / 1e6:>13.1f} "
                f"{row['floats_per_weight']:>18.2f}",
                flush=True,
            )
    return rows


def transient_bytes(size: int, components: int, estimator: Any) -> int:
    """Compile one training step and return the bytes of its temporary buffers.

    Args:
      size: N, a multiple of 1,024.
      components: K.
      estimator: of `sqs_jax.elbo`.
    """
    sqs = sqs_jax.spike_slab_gmm(
        [sqs_jax.Rule(components=components)],
        prior=sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0),
    )
    params = jax.ShapeDtypeStruct((1024, size // 1024), jnp.float32)
    loss_fn = sqs_jax.elbo(
        sqs,
        lambda params, batch: (jnp.mean(jnp.sin(batch @ params["kernel"])), None),
        num_data=1000,
        estimator=estimator,
        temperature=0.5,
    )

    def step(posterior: Any, batch: jax.Array, key: jax.Array) -> Any:
        return jax.value_and_grad(loss_fn, has_aux=True, allow_int=True)(posterior, batch, key, 0)

    posterior = jax.eval_shape(sqs.init, {"kernel": params})
    batch = jax.ShapeDtypeStruct((8, 1024), jnp.float32)
    compiled = jax.jit(step).lower(posterior, batch, jax.random.key(0)).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None  # CPU, GPU and TPU backends have one
    return analysis.temp_size_in_bytes
