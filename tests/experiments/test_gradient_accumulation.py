"""Gradient accumulation equals the gradient of the batch, also without some labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import digits
from experiments.data import Dataset
from experiments.models import build_model
from experiments.models.resnet import ResNet
from experiments.training.phases import phases
from experiments.training.step import init_state, make_gradient


@pytest.mark.parametrize("statistics", [False, True])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(statistics: bool) -> None:
    config = digits.get_config()
    config.batch_size, config.data.shift, config.data.flip = 12, 1, True
    config.model.features, config.model.hidden = (4,), 8  # a compressed leaf takes long to compile
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, 10, 12).astype(np.int32)
    labels[[0, 3, 6, 9, 4]] = -1  # no label: micro-batches have unequal weights, the first has none
    data = Dataset(images, labels, None, None)
    resnet = ResNet(blocks=(1,), widths=(8,), num_classes=10)
    model = resnet if statistics else build_model(config.model, 10)
    phase = phases(config, 12)[-1]._replace(distill_weight=0.0, rate_weight=0.01, kl_weight=1.0)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    state = init_state(phase, variables)
    seed = np.asarray(jax.random.key_data(jax.random.key(1)))

    def computed(parts: int):
        config.accumulate = parts
        gradient = jax.jit(make_gradient(model, phase, data, config))
        return gradient(state, data, {}, jnp.int32(3), seed)

    (loss, aux), grads = computed(1)
    (loss_3, aux_3), grads_3 = computed(3)
    assert jax.tree.structure(aux) == jax.tree.structure(aux_3)
    if not statistics:
        one, three = (loss, aux.nll, aux.kl, grads), (loss_3, aux_3.nll, aux_3.kl, grads_3)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(three), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
        assert float(aux.model_aux[1]) == pytest.approx(float(aux_3.model_aux[1]))
    else:  # whose batch statistics are of a part each, and move with every one
        once, moved = (jax.tree.leaves(each.model_aux[0])[0] for each in (aux, aux_3))
        assert float(jnp.abs(moved).sum()) > 1.5 * float(jnp.abs(once).sum())
