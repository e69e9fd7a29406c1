"""The three trainings of an experiment, as one kind of thing.

dense      the network from scratch: a posterior without compressed leaves is just its params
finetune   the dense network trained on with the data, steps, schedule and teacher of `sqs`:
           what compression is fairly compared with
sqs        the compression
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import sqs_jax
from experiments.training.settings import require_trainable
from sqs_jax.baselines import codeq, dgms

_FITS = 10  # how often a budget is met anew: its file is measured, for seconds


class Phase(NamedTuple):
    """What one training does.

    Attributes:
      name: of its checkpoints and its lines in the metrics.
      transform: a sqs_jax.Transform.
      prior: of its compressed weights.
      estimator: where the likelihood is evaluated.
      steps: length of the run.
      kl_weight: weight of the KL term.
      temperature: schedule of the responsibilities' temperature.
      relaxation: of the draws of estimator "sample".
      method: "adamw" or "sgd".
      learning_rate: peak learning rate of each label of `sqs_jax.param_labels` that is trained.
      warmup: steps over which learning rates rise to their peaks.
      settled: label -> step from which it is not trained any more, if before the end.
      rate_weight: weight of the codes' length, nats per training example.
      weight_decay: on everything trained; of AdamW decoupled, of SGD in the gradient.
      distill_weight: of the teacher's term in the NLL; 0 needs no teacher.
      distill_temperature: both networks' logits are divided by it in that term.
      mask: when and how the mask is decided; None if nothing is pruned.
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
        """Return the method with warm-up and cosine, a learning rate for every label."""

        def one(label: str, rate: float) -> optax.GradientTransformation:
            end = self.settled.get(label, self.steps)
            schedule = optax.warmup_cosine_decay_schedule(0.0, rate, self.warmup, end)
            if self.method == "adamw":
                return optax.adamw(schedule, weight_decay=self.weight_decay)
            decay = optax.add_decayed_weights(self.weight_decay)
            return optax.chain(decay, optax.sgd(schedule, momentum=0.9, nesterov=True))

        return optax.partition(
            {label: one(label, rate) for label, rate in self.learning_rate.items()},
            sqs_jax.param_labels,
        )

    def scored_by(self, scores: Callable[[Any], Any]) -> "Phase":
        """Return the phase with other pruning scores: (posterior) -> scores."""
        assert self.mask is not None
        return self._replace(mask=self.mask._replace(scores=scores))


class MaskSchedule(NamedTuple):
    """When the pruning mask is decided anew, and at which sparsity (steps are counted from 0).

    With a budget (see budget.py) there is no ramp: the first decision meets the size of the file,
    and some of the later ones do, for codes take more bits as training goes on. The schedule then
    says where that begins to search.
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
        """Return whether the mask is decided before this step."""
        return step == self.freeze or (
            self.start <= step < self.freeze and (step - self.start) % self.every == 0
        )

    def decide(self, posterior: Any, step: int, model_state: Any) -> Any:
        """Prune to this step's sparsity, and refit what is left; or as the budget decides."""
        if self.budget is None:
            return self.prune(posterior, float(self.sparsity(step)))
        if self.fits(step):
            return self.budget.fit(posterior, model_state)
        return self.budget.assign(posterior, 0.0)

    def fits(self, step: int) -> bool:
        """Return whether a budget is met anew at this decision."""
        spacing = max((self.freeze - self.start) // (self.every * _FITS), 1)
        return step == self.freeze or (step - self.start) // self.every % spacing == 0

    def prune(self, posterior: Any, fraction: float) -> Any:
        """Prune to a sparsity, and refit what is left."""
        scores = self.scores(posterior)
        posterior = sqs_jax.prune(posterior, fraction, scores=scores, scope=self.scope)
        return _refitted(posterior) if self.refit else posterior


@jax.jit
def _refitted(posterior: Any) -> Any:
    """Refit all tensors in one program: accelerators compile its kernels side by side."""
    return sqs_jax.refit(sqs_jax.revive(posterior))


def phases(config: Any, num_train: int) -> list[Phase]:
    """Return the three trainings that a config describes.

    Args:
      config: an experiment, see experiments/configs/base.py.
      num_train: number of training examples.

    Raises:
      ValueError: listing all settings that cannot be trained, see settings.py.
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
    # Frozen latent weights are a choice of the compression, not of what it is compared with.
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
    """Return the transform that a config describes."""
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
    final = 1.0 if sqs.target_bytes else sqs.sparsity  # a budget puts its own there, budget.py
    return MaskSchedule(
        # the cubic ramp; the last decision is at the target even if the ramp has no length
        sparsity=optax.polynomial_schedule(0.0, final, 3, max(end - start, 1), start),
        start=start,
        end=end,
        freeze=max(freeze, start),
        every=sqs.prune_every,
        scope=sqs.scope,
        scores=sqs_jax.saliency.gate if sqs.saliency == "gate" else sqs_jax.saliency.magnitude,
        refit=sqs.refit,
    )
