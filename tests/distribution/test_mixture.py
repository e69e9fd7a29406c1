import jax.numpy as jnp
import numpy as np
import pytest
from problems import generic, leaf, params, reference, transform

from sqs_jax import Windows
from sqs_jax.distribution import mixture

WINDOWS = [Windows(), Windows(kind="equal", count=3), Windows(kind="outlier", count=4)]


def problem(windows=WINDOWS[0], shape=(12, 8), dtype=jnp.float32):
    return leaf(generic(transform(windows=windows).init(params(shape, dtype=dtype))))


@pytest.mark.parametrize("windows", WINDOWS, ids=lambda w: w.kind)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
def test_responsibilities_match_float64(windows, temperature):
    d = problem(windows)
    phi = mixture.responsibilities(d.loc.ravel(), d.mixture, temperature)
    np.testing.assert_allclose(phi.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(phi, reference(d, temperature)[0], atol=2e-4)
