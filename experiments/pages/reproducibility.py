"""Command that reproduces a run, from config.json and the configs of this checkout."""

import importlib
import json
import pkgutil
import shlex
from html import escape
from typing import Any

from flax.traverse_util import flatten_dict

from experiments import configs


def command(config: dict[str, Any], name: str) -> dict[str, str]:
    """Describe a run's training and the reproducing command as HTML.

    Args:
      config: Content of config.json.
      name: Name of the run's folder.

    Returns:
      "recipe", a sentence; "command", with the nearest config file of this checkout and a flag per
      field that differs; "command_note", a paragraph on unknown fields, or "".
    """
    fields = flatten_dict(config, sep=".")
    checkout = _configs()

    def differences(path: str) -> list[str]:
        return [k for k, v in fields.items() if checkout[path].get(k, _ABSENT) != v]

    nearest = min(checkout, key=lambda path: (len(differences(path)), path))
    flags, foreign = [], []
    for field in differences(nearest):
        if field in checkout[nearest]:
            value = fields[field]
            text = str(tuple(value)) if isinstance(value, list) else str(value)
            flags.append(shlex.quote(f"--config.{field}={text}"))
        else:
            foreign.append(field)
    foreign += [field for field in checkout[nearest] if field not in fields]
    parts = [f"python -m experiments.train --config={nearest}", *flags]
    parts.append(shlex.quote(f"--workdir=runs/{name}"))
    note = ""
    if foreign:
        note = (
            "<p>This config.json is of another version of the experiments, so the command may not "
            f"make the same run; the fields that differ: {escape(', '.join(foreign))}.</p>"
        )
    sqs = config["sqs"]
    windows = "" if sqs["window_kind"] == "single" else " and window"
    aim = (
        f"K = {sqs['components']} values per layer{windows}, {100 * sqs['sparsity']:g} % of the "
        "weights pruned"
    )
    if sqs.get("target_bytes"):
        aim = f"towards a file of {sqs['target_bytes']:,} bytes"
    start = f"after {config['dense']['epochs']:g} of dense training"
    if config["model"].get("weights"):
        start = "from given weights"
    recipe = (
        f"The {sqs['recipe']} recipe with seed {config['seed']}: {aim}, the likelihood at the "
        f"{sqs['estimator']}, {sqs['epochs']:g} epochs {start}."
    )
    return {
        "recipe": escape(recipe),
        "command": escape(" \\\n    ".join(parts)),
        "command_note": note,
    }


_ABSENT = object()


def _configs() -> dict[str, dict[str, Any]]:
    """Return the fields of each config in experiments/configs, by the file's path."""
    fields = {}
    for module in pkgutil.iter_modules(configs.__path__):
        imported = importlib.import_module(f"{configs.__name__}.{module.name}")
        if hasattr(imported, "get_config"):
            text = imported.get_config().to_json_best_effort()
            path = f"experiments/configs/{module.name}.py"
            fields[path] = flatten_dict(json.loads(text), sep=".")
    return fields
