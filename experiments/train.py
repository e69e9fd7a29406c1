"""Train a dense network, compress it, write the file, evaluate it in a second process, report.

    python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits

Every field of the config can be set: --config.sqs.sparsity=0.9. A run that was interrupted goes
on from its latest checkpoint when the same command is given again.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

import sqs_jax
from experiments import data
from experiments.evaluate import build_model, fingerprint, predict
from experiments.export import describe_distributions, export
from experiments.loop import run_phase
from experiments.phases import phases
from experiments.report import write_report

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")


def claim_workdir(workdir: Path, config: Any) -> None:
    """Make the folder the run of this config, or raise ValueError if it holds another's."""
    wanted = json.loads(config.to_json_best_effort())
    path = workdir / "config.json"
    if path.exists():
        found = json.loads(path.read_text())
        differences = [
            f"config.{name}: {_flat(found).get(name, 'absent')} there, "
            f"{_flat(wanted).get(name, 'absent')} now"
            for name in sorted({**_flat(found), **_flat(wanted)})
            if _flat(found).get(name) != _flat(wanted).get(name)
        ]
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another config. Differences: {'; '.join(differences)}. "
                "Give another --workdir, or remove this one to start anew."
            )
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flat(child, f"{prefix}.{key}" if prefix else key).items()
    }


def train(config: Any, workdir: Path) -> dict[str, Any]:
    """Run an experiment to its end; returns what evaluation.json holds."""
    claim_workdir(workdir, config)
    splits = data.load(config.data, config.seed)
    dense_phase, finetune_phase, sqs_phase = phases(config, len(splits.train.labels))
    model = build_model(config, splits.num_classes)
    start = jax.jit(model.init)(jax.random.key(config.seed), jnp.asarray(splits.train.images[:1]))

    def run(phase: Any, variables: Any, teacher: Any) -> Any:
        return run_phase(phase, model, variables, teacher, splits.train, config, workdir)

    state = run(dense_phase, start, {})
    dense = {"params": state.posterior, **state.model_state}
    tuned = run(finetune_phase, dense, dense)
    state = run(sqs_phase, dense, dense)

    export(workdir, sqs_phase, dense, state, config)
    finetuned = {"params": tuned.posterior, **tuned.model_state}
    sqs_jax.save(workdir / "finetune.sqs", jax.device_get(finetuned))
    describe_distributions(workdir / "distributions.json", state.posterior)
    subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", f"--workdir={workdir}"], check=True
    )
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    return evaluation


def main(_: Any) -> None:
    for flag in ("config", "workdir"):
        if flags.FLAGS[flag].value is None:
            raise app.UsageError(f"--{flag} is needed.")
    workdir = Path(_WORKDIR.value)
    evaluation = train(_CONFIG.value, workdir)
    print(json.dumps(evaluation, indent=1))


if __name__ == "__main__":
    app.run(main)
