"""Methods that train with compression, from equal weights, data, steps and teacher.

All use the same training loop. Ours trains towards a size, and so do the peers that choose codes
first and then train the codebooks. For the other peers the setting determines the size: each
setting is a training run, and a size gets the best run that fits.
"""

from pathlib import Path
from typing import Any, NamedTuple

from experiments.problem import load_problem
from experiments.train import train

OURS = "ours-trained"
# Keys are methods; values are the post-training peers whose codes they keep.
TUNED = {f"{name}-trained": name for name in ("decomposition", "prune-kmeans", "kmeans-prune")}

# Settings that turn off our own features: budget, calibrated start, rate penalty, mask.
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
_LOGIT_RATE = 3e-2  # learning rate of CoDeQ's logits, which start at 3


class Setting(NamedTuple):
    """Setting of a peer's training.

    Attributes:
      fields: Values of config fields, by dotted name.
      penalty: Weight of the method's `kl` per label of the training data, >= 0; 0 keeps the
        config's weight.
    """

    fields: dict[str, Any]
    penalty: float = 0.0


def _codeq(method: str, settings: tuple[tuple[int, float], ...]) -> list[Setting]:
    """Return CoDeQ's settings for pairs of (bits per code, penalty)."""
    return [
        Setting(
            {
                "sqs.method": method,
                "sqs.components": 2**width - 2,
                "sqs.learning_rate.spread": _LOGIT_RATE,
            },
            penalty,
        )
        for width, penalty in settings
    ]


# A run's folder is named by the index of the setting, so that new settings go to the end.
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
    """Train by a method, and return the settings and the scores of model.sqs.

    Args:
      config: Config of the experiment; ours and TUNED train towards its `sqs.target_bytes`.
      method: One of METHODS.
      number: Index of the peer's setting in SETTINGS.
      workdir: Folder of the training run.

    Raises:
      sqs_jax.BudgetError: If the method makes no file of this size.
    """
    config = config.copy_and_resolve_references()
    config.update({"finetune": False})
    config.evaluation.average_samples = 0
    settings: dict[str, Any] = {}
    rates = config.sqs.learning_rate
    if method in TUNED:
        config.sqs.start, rates.loc, rates.means = TUNED[method], 0.0, rates.dense
    elif method != OURS:
        setting = SETTINGS[method][number]
        # Compressed leaves have one rate. Our configs that keep codes have the rate 0 for loc.
        rates.loc = rates.means = rates.spread = rates.loc or rates.dense
        config.update_from_flattened_dict({**_PEER, **setting.fields})
        settings = {"components": config.sqs.components}
        if setting.penalty:
            train_part = load_problem(config, workdir).splits.train
            generated = config.sqs.generated / len(train_part.labels)
            config.sqs.kl_weight = setting.penalty * train_part.units * (1 + generated)
            settings["penalty"] = setting.penalty
    scores = train(config, workdir, ["mode"])["mode"]
    names = ("accuracy", "nll", "perplexity", "calibration_error")
    scores = {name: scores[name] for name in names if name in scores}
    return {"settings": settings, "scores": scores}


def chosen(runs: list[dict[str, Any]], budget: int) -> dict[str, Any]:
    """Return the result of a peer at a budget: the best run whose file fits.

    Args:
      runs: Results of all settings of the peer.
      budget: Largest size of the file, bytes.
    """
    fitting = [run for run in runs if run["bytes"] <= budget]
    if not fitting:
        return {**runs[0], "budget": budget, "bytes": None}
    best = min(fitting, key=_rank)
    return {**best, "budget": budget}


def _rank(run: dict[str, Any]) -> tuple[float, float]:
    """Return a sort key by the score that the page shows, perplexity or accuracy."""
    scores = run["scores"]
    return (0.0 if "perplexity" in scores else -scores["accuracy"]), scores["nll"]
