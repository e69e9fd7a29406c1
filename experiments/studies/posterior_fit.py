"""Fit of posteriors to a teacher's examples, and the function error of the fit."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import sqs_jax
from experiments.studies.mean_field import dense_gaussians
from experiments.studies.teacher_network import Task, network

# Updates of the mask, in equal shares of the first training; the last quarter keeps the mask.
_DECISIONS = 60


class Student:
    """Fit of a posterior family to tasks of equal size.

    Batches are drawn with replacement, so that one compiled program serves every number of
    examples.
    """

    def __init__(self, transform: sqs_jax.Transform, config: Any, *, sparse: bool) -> None:
        """Prepare the compiled functions.

        Args:
          transform: Transform of the posterior.
          config: Config of the study.
          sparse: Whether the structure, mask and codes, is trained first.
        """
        self.transform, self._config, self._sparse = transform, config, sparse
        self._descend = jax.jit(self._steps, static_argnames=("estimator", "train", "count"))
        self._squares = jax.jit(self._square_error)

    def _steps(
        self, posterior: Any, task: Task, examples: Any, first: Any, moments: Any, *,
        estimator: Any, train: tuple[str, ...], count: int,
    ) -> tuple[Any, Any]:  # fmt: skip
        config = self._config
        sampling = estimator == "sample"
        rate, steps = (
            (config.learning_rate, config.steps)
            if sampling
            else (config.structure_rate, config.structure_steps)
        )

        def nll(params: Any, batch: jax.Array) -> tuple[jax.Array, None]:
            residuals = network(params, task.inputs[batch]) - task.targets[batch]
            return jnp.mean(residuals**2) / (2 * config.noise**2), None

        loss_fn = sqs_jax.elbo(
            self.transform, nll, num_data=1, estimator=estimator,
            kl_weight=lambda _: (1.0 if sampling else 0.0) / examples,
            temperature=config.temperature, relaxation=config.relaxation,
        )  # fmt: skip
        optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
        trainable, fixed = sqs_jax.partition(posterior, train=train)

        def step(state: Any, step: jax.Array) -> tuple[Any, None]:
            trainable, moments = state
            batch_key, draw_key = jax.random.split(jax.random.fold_in(task.key, step))
            batch = jax.random.randint(batch_key, (config.batch_size,), 0, examples)
            gradient = jax.grad(
                lambda part: loss_fn(sqs_jax.combine(part, fixed), batch, draw_key, step)[0]
            )(trainable)
            updates, moments = optimizer.update(gradient, moments, trainable)
            return (optax.apply_updates(trainable, updates), moments), None

        if moments is None:
            moments = optimizer.init(trainable)
        state, _ = jax.lax.scan(step, (trainable, moments), first + jnp.arange(count))
        return sqs_jax.combine(state[0], fixed), state[1]

    def find_structure(self, task: Task, examples: int) -> Any:
        """Return an SQS posterior with a fixed mask and each weight at a level.

        Args:
          task: Task to fit.
          examples: Number of examples of the task to use.
        """
        config, moments = self._config, None
        weights = jax.tree.leaves(task.truth)
        sparsity = sum(int((w == 0).sum()) for w in weights) / sum(w.size for w in weights)
        posterior = self.transform.init(task.start)
        count = config.structure_steps // _DECISIONS
        for decision in range(_DECISIONS):
            if 4 * decision < 3 * _DECISIONS:
                posterior = sqs_jax.prune(posterior, sparsity)
                posterior = sqs_jax.refit(sqs_jax.revive(posterior))
            posterior, moments = self._descend(
                posterior, task, examples, decision * count, moments,
                estimator="mode", train=("loc", "means"), count=count,
            )  # fmt: skip
        levels = self.transform.mode(posterior)
        # The ELBO then starts from latent weights at their levels and narrow components.
        return {
            layer: {
                "kernel": leaf["kernel"].replace(
                    loc=jnp.where(leaf["kernel"].kept, levels[layer]["kernel"], leaf["kernel"].loc),
                    log_scales=jnp.full_like(leaf["kernel"].log_scales, jnp.log(0.02)),
                )
            }
            for layer, leaf in posterior.items()
        }

    def error(self, task: Task, examples: int) -> float:
        """Fit the posterior to the first examples, and return the function error."""
        config = self._config
        train = ("gate", "means", "spread", "dense")  # labels that a posterior lacks are ignored
        if self._sparse:
            posterior = self.find_structure(task, examples)
        else:
            posterior = self.transform.init(task.start)
        posterior, _ = self._descend(
            posterior, task, examples, 0, None, estimator="sample", train=train, count=config.steps
        )
        return float(jnp.sqrt(self._squares(posterior, task)))

    def _square_error(self, posterior: Any, task: Task) -> jax.Array:
        truth = network(task.truth, task.tests)
        sample = self.transform.sample
        assert sample is not None  # both transforms can draw

        def squared_error(key: jax.Array) -> jax.Array:
            # At this relaxation gates and components are practically binary.
            draw = sample(posterior, key, temperature=self._config.temperature, relaxation=0.01)
            return jnp.mean((network(draw, task.tests) - truth) ** 2)

        return jnp.mean(jax.lax.map(squared_error, jax.random.split(task.key, self._config.draws)))


def students(config: Any) -> dict[str, Student]:
    """Return the posterior families of the study, by name."""
    prior = sqs_jax.SpikeSlabPrior(inclusion=config.prior_inclusion, scale=config.prior_scale)
    rule = sqs_jax.Rule(components=config.components)
    return {
        "SQS": Student(
            sqs_jax.spike_slab_gmm([rule], prior=prior, evaluation="loop"), config, sparse=True
        ),
        "dense Gaussians": Student(dense_gaussians(config.prior_scale), config, sparse=False),
    }
