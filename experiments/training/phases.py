"""Training phases of an experiment: dense training, fine-tuning, compression.

dense      The network from scratch. Its posterior has no compressed leaves and equals the params.
finetune   The fair baseline of the compression: the dense network, trained further with the data,
           steps, schedule and teacher of the phase `sqs`.
sqs        The compression.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import sqs_jax
from experiments.configs.validation import require_trainable
from sqs_jax.baselines import codeq, dgms

_FITS = 10  # searches for the budget in a training; each measures files, which takes seconds


class Phase(NamedTuple):
    """Settings of a training phase.

    Attributes:
      name: Name of the phase in checkpoints and metrics.
      transform: Transform of the params, a `sqs_jax.Transform`.
      prior: Prior of the compressed weights.
      estimator: Estimator of the likelihood: "mean", "sample" or "mode".
      steps: Number of steps, at least 1.
      kl_weight: Weight of the KL term, at least 0.
      temperature: Schedule of the softmax temperature of the responsibilities.
      relaxation: Temperature of the draws of estimator "sample", positive.
      method: Optimizer, "adamw" or "sgd".
      learning_rate: Peak learning rate by label of `sqs_jax.param_labels`; other labels are frozen.
      warmup: Number of steps of the linear warm-up.
      settled: Step from which a label is frozen, by label; other labels are trained to the end.
      rate_weight: Weight of the code length, nats per training example.
      weight_decay: Weight decay of all trained arrays; decoupled in AdamW, in the gradient in SGD.
      distill_weight: Weight of the teacher's term in the NLL, in [0, 1]; 0 needs no teacher.
      distill_temperature: Divisor of both networks' logits in the teacher's term, positive.
      mask: Schedule of the pruning mask; None without pruning.
    """

    name: str
    transform: sqs_jax.Transform
    prior: sqs_jax.SpikeSlabPrior
    estimator: Any
    steps: int
    kl_weight: float
    temperature: optax.Schedule
    relaxation: float
    method: str
    learning_rate: dict[str, float]
    warmup: int
    settled: dict[str, int]
    rate_weight: float
    weight_decay: float
    distill_weight: float
    distill_temperature: float
    mask: "MaskSchedule | None"

    def optimizer(self) -> optax.GradientTransformation:
        """Build the optimizer with linear warm-up and cosine decay for every label."""

        def label_optimizer(label: str, rate: float) -> optax.GradientTransformation:
            end = self.settled.get(label, self.steps)
            schedule = optax.warmup_cosine_decay_schedule(0.0, rate, self.warmup, end)
            if self.method == "adamw":
                return optax.adamw(schedule, weight_decay=self.weight_decay)
            decay = optax.add_decayed_weights(self.weight_decay)
            return optax.chain(decay, optax.sgd(schedule, momentum=0.9, nesterov=True))

        return optax.partition(
            {label: label_optimizer(label, rate) for label, rate in self.learning_rate.items()},
            sqs_jax.param_labels,
        )

    def scored_by(self, scores: Callable[[Any], Any]) -> "Phase":
        """Replace the function (posterior) -> pruning scores."""
        assert self.mask is not None
        return self._replace(mask=self.mask._replace(scores=scores))


class MaskSchedule(NamedTuple):
    """Schedule of the decisions of the pruning mask.

    With a budget (budget.py) the first decision and about ten later decisions solve for the size of
    the file, because codes take more bits as the training proceeds. `sparsity` is then the start of
    the first search.

    Attributes:
      sparsity: Schedule of the sparsity, in [0, 1).
      start: Step of the first decision, counted from 0.
      end: Step at which the ramp ends.
      freeze: Step of the last decision.
      every: Number of steps between decisions.
      scope: "global" or "tensor", as in `sqs_jax.prune`.
      scores: Function (posterior) -> pruning scores.
      refit: Whether scales and mixture weights are refitted at each decision.
      budget: `Budget` of the file; None without one.
    """

    sparsity: optax.Schedule
    start: int
    end: int
    freeze: int
    every: int
    scope: Any
    scores: Callable[[Any], Any]
    refit: bool
    budget: Any = None

    def due(self, step: int) -> bool:
        """Return whether the mask is decided before a step."""
        return step == self.freeze or (
            self.start <= step < self.freeze and (step - self.start) % self.every == 0
        )

    def decide(self, posterior: Any, step: int, model_state: Any) -> Any:
        """Decide the mask before a step, by the sparsity or by the budget.

        Args:
          posterior: Posterior of the network.
          step: Step, counted from 0.
          model_state: Other collections of the network, for the size of the file.
        """
        if self.budget is None:
            return self.prune(posterior, float(self.sparsity(step)))
        if self.fits(step):
            return self.budget.fit(posterior, model_state)
        return self.budget.assign(posterior, 0.0)

    def fits(self, step: int) -> bool:
        """Return whether the decision before a step solves for the budget."""
        spacing = max((self.freeze - self.start) // (self.every * _FITS), 1)
        return step == self.freeze or (step - self.start) // self.every % spacing == 0

    def prune(self, posterior: Any, fraction: float) -> Any:
        """Prune to a sparsity, and refit the survivors."""
        scores = self.scores(posterior)
        posterior = sqs_jax.prune(posterior, fraction, scores=scores, scope=self.scope)
        return _refitted(posterior) if self.refit else posterior


@jax.jit
def _refitted(posterior: Any) -> Any:
    """Refit all tensors in a joint program, which accelerators compile in parallel."""
    return sqs_jax.refit(sqs_jax.revive(posterior))


def phases(config: Any, num_train: int) -> list[Phase]:
    """Build the three phases of a config: dense, finetune, sqs.

    Args:
      config: Config of an experiment, see experiments/configs/base.py.
      num_train: Number of training examples.

    Raises:
      ValueError: Settings cannot be trained; the message lists every problem.
    """
    require_trainable(config, num_train)
    sqs = config.sqs
    dense_steps = _steps(config.dense.epochs, num_train, config)
    steps = _steps(sqs.epochs, num_train + sqs.generated, config)
    prior = sqs_jax.SpikeSlabPrior(inclusion=sqs.prior_inclusion, scale=sqs.prior_scale)
    leave_dense = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=None)], prior=prior)
    dense = Phase(
        name="dense",
        transform=leave_dense,
        prior=prior,
        estimator="mean",
        steps=dense_steps,
        kl_weight=0.0,
        temperature=optax.constant_schedule(1.0),
        relaxation=sqs.relaxation,
        method=config.dense.optimizer,
        learning_rate={"dense": config.dense.learning_rate},
        warmup=round(config.dense.warmup * dense_steps),
        settled={},
        rate_weight=0.0,
        weight_decay=config.dense.weight_decay,
        distill_weight=0.0,
        distill_temperature=1.0,
        mask=None,
    )
    rates = {label: rate for label, rate in sqs.learning_rate.items() if rate > 0}
    compress = Phase(
        name="sqs",
        transform=transform(config, prior),
        prior=prior,
        estimator=sqs.estimator,
        steps=steps,
        kl_weight=sqs.kl_weight,
        temperature=_geometric(sqs.temperature_start, sqs.temperature_end, steps),
        relaxation=sqs.relaxation,
        method="adamw",
        learning_rate=rates,
        warmup=round(sqs.warmup * steps),
        settled={"loc": round(sqs.latent_end * steps), "gate": round(sqs.gate_end * steps)},
        rate_weight=sqs.rate_weight,
        weight_decay=sqs.weight_decay,
        distill_weight=sqs.distill_weight,
        distill_temperature=sqs.distill_temperature,
        mask=_mask_schedule(sqs, steps) if sqs.method == "spike_slab" else None,
    )
    # Frozen latent weights are a choice of the compression; the baseline trains all weights.
    finetune = dense._replace(
        name="finetune",
        steps=steps,
        method="adamw",
        learning_rate={"dense": sqs.learning_rate.loc or sqs.learning_rate.dense},
        warmup=round(sqs.warmup * steps),
        weight_decay=sqs.weight_decay,
        distill_weight=sqs.distill_weight,
        distill_temperature=sqs.distill_temperature,
    )
    return [dense, finetune, compress]


def transform(config: Any, prior: sqs_jax.SpikeSlabPrior) -> sqs_jax.Transform:
    """Build the transform of a config."""
    sqs = config.sqs
    windows = sqs_jax.Windows(kind=sqs.window_kind, count=sqs.window_count)
    rules = [sqs_jax.Rule(pattern=sqs.pattern, components=sqs.components, windows=windows)]
    if sqs.method == "dgms":
        return dgms.dgms(rules)
    if sqs.method.startswith("codeq"):
        return codeq.codeq(rules, mixed=sqs.method == "codeq_mixed")
    return sqs_jax.spike_slab_gmm(rules, prior=prior)


def _steps(epochs: float, examples: int, config: Any) -> int:
    return max(round(epochs * (examples // config.batch_size)), 1)


def _geometric(start: float, end: float, steps: int) -> optax.Schedule:
    return optax.exponential_decay(start, max(steps, 1), end / start)


def _mask_schedule(sqs: Any, steps: int) -> MaskSchedule:
    start, end = round(sqs.prune_start * steps), round(sqs.prune_end * steps)
    freeze = min(round(sqs.prune_freeze * steps), steps - 1)
    final = 1.0 if sqs.target_bytes else sqs.sparsity  # scaled by a budget, budget.py
    return MaskSchedule(
        # A ramp of no length still ends at the target: the cubic takes at least one step.
        sparsity=optax.polynomial_schedule(0.0, final, 3, max(end - start, 1), start),
        start=start,
        end=end,
        freeze=max(freeze, start),
        every=sqs.prune_every,
        scope=sqs.scope,
        scores=sqs_jax.saliency.gate if sqs.saliency == "gate" else sqs_jax.saliency.magnitude,
        refit=sqs.refit,
    )
