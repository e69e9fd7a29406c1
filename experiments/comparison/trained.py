"""The methods that train, all by one loop, from the same weights, data, steps and teacher.

Ours trains towards a size. So do the peers that choose codes first and then train what these stand
for. The sizes of the others follow from their settings: each setting is a training, and a size
gets the best of those that fit.
"""

from pathlib import Path
from typing import Any, NamedTuple

from experiments.configs.sqs_fields import reset_unused
from experiments.task.load import load_task
from experiments.train import train

OURS = "ours-trained"
# name -> the peer whose codes it starts at, and keeps
TUNED = {f"{name}-trained": name for name in ("decomposition", "prune-kmeans", "kmeans-prune")}

# what none of the peers has: a budget, codes to start at, a price of codes, a mask
_PEER = {
    "sqs.target_bytes": 0,
    "sqs.start": "weights",
    "sqs.estimator": "mean",
    "sqs.rate_weight": 0.0,
    "sqs.saliency": "magnitude",
    "sqs.order": "together",
    "sqs.mistakes": (),
    "sqs.window_kind": "single",
    "sqs.window_count": 1,
}
_LOGIT_RATE = 3e-2  # of CoDeQ's, which start at 3


class Setting(NamedTuple):
    """What a training of a peer is told.

    Attributes:
      fields: of the config.
      penalty: weight of the method's `kl`, per unit of the training data.
    """

    fields: dict[str, Any]
    penalty: float = 0.0


def _codeq(method: str, ways: tuple[tuple[int, float], ...]) -> list[Setting]:
    return [
        Setting(
            {
                "sqs.method": method,
                "sqs.components": 2**width - 2,
                "sqs.learning_rate.spread": _LOGIT_RATE,
            },
            penalty,
        )
        for width, penalty in ways
    ]


# the folder of a training has the number of its setting: new ones go to the end
SETTINGS = {
    "dgms-trained": [
        Setting({"sqs.method": "dgms", "sqs.components": k}) for k in (62, 30, 14, 6, 2, 22, 10)
    ],
    "codeq-trained": [
        *_codeq("codeq", ((6, 0.01), (5, 0.001), (5, 0.01), (4, 0.001), (4, 0.01))),
        *_codeq("codeq", ((3, 0.001), (3, 0.01), (2, 0.001), (4, 0.03))),
    ],
    "codeq_mixed-trained": _codeq("codeq_mixed", ((8, 0.01), (6, 0.01), (8, 0.1), (4, 0.01))),
}
METHODS = (OURS, *TUNED, *SETTINGS)


def run(config: Any, method: str, number: int, workdir: Path) -> dict[str, Any]:
    """Train by a method; returns the settings and the scores of the file, model.sqs.

    Args:
      config: the experiment; ours and TUNED train towards its `sqs.target_bytes`.
      method: one of METHODS.
      number: of the peer's setting.
      workdir: of the training.

    Raises:
      sqs_jax.BudgetError: if the method makes no file that small.
    """
    config = config.copy_and_resolve_references()
    config.update({"finetune": False})
    config.evaluation.average_samples = 0
    told: dict[str, Any] = {}
    rates = config.sqs.learning_rate
    if method in TUNED:
        config.sqs.start, rates.loc, rates.means = TUNED[method], 0.0, rates.dense
    elif method != OURS:
        setting = SETTINGS[method][number]
        # compressed leaves have one rate; where loc's is 0, codes of ours stay
        rates.loc = rates.means = rates.spread = rates.loc or rates.dense
        config.update_from_flattened_dict({**_PEER, **setting.fields})
        reset_unused(config.sqs)
        told = {"components": config.sqs.components}
        if setting.penalty:
            train_part = load_task(config, workdir).splits.train
            written = config.sqs.generated / len(train_part.labels)
            config.sqs.kl_weight = setting.penalty * train_part.units * (1 + written)
            told["penalty"] = setting.penalty
    scores = train(config, workdir, ["mode"])["mode"]
    kept = ("accuracy", "nll", "perplexity", "calibration_error")
    return {"settings": told, "scores": {name: scores[name] for name in kept if name in scores}}


def chosen(runs: list[dict[str, Any]], budget: int) -> dict[str, Any]:
    """Return the best of a peer's trainings, as the result of a size that its file fits in."""
    fitting = [each for each in runs if each["bytes"] <= budget]
    if not fitting:
        return {**runs[0], "budget": budget, "bytes": None}
    best = min(fitting, key=_rank)
    return {**best, "budget": budget}


def _rank(run: dict[str, Any]) -> tuple[float, float]:
    """Order trainings by what is shown: perplexity, or accuracy."""
    scores = run["scores"]
    return (0.0 if "perplexity" in scores else -scores["accuracy"]), scores["nll"]
