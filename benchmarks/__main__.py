"""Run benchmarks by name, print tables, and write a JSON file.

python -m benchmarks                  # all
python -m benchmarks memory file      # some
"""

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks import (
    budget,
    calibration,
    compile_time,
    digits,
    file,
    imported,
    input,
    many_tensors,
    memory,
    monotone,
    predicted,
    recipes,
    scaling,
    soft_weight,
    statistics,
    steps,
    windows,
)
from sqs_jax.progress import progress

BENCHMARKS = {
    "file": file.run,
    "budget": budget.run,
    "monotone": monotone.run,
    "many_tensors": many_tensors.run,
    "memory": memory.run,
    "soft_weight": soft_weight.run,
    "compile_time": compile_time.run,
    "steps": steps.run,
    "scaling": scaling.run,
    "digits": digits.run,
    "recipes": recipes.run,
    "imported": imported.run,
    "calibration": calibration.run,
    "windows": windows.run,
    "input": input.run,
    "statistics": statistics.run,
    "predicted": predicted.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"which: {', '.join(BENCHMARKS)}; all if none is given")  # fmt: skip
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"),
                        help="published weights, images and texts, see networks.py; statistics and "
                             "predicted need cifar10.npz, and DATA/minilm")  # fmt: skip
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    options.workdir.mkdir(parents=True, exist_ok=True)
    path = options.workdir / "benchmarks.json"
    machine = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in ("jax", "flax", "optax", "numpy", "torch")},
    }
    # Lines instead of bars: redrawing would be timed, and some benchmarks start commands with bars.
    lines = Console(stderr=True, force_interactive=False)
    for name in options.names or BENCHMARKS:
        print(f"\n{name}: {BENCHMARKS[name].__module__}", flush=True)
        with progress(name, console=lines):
            rows = BENCHMARKS[name](options.workdir, options.data)
        # Rows of other benchmarks stay, also those that another process wrote in the meantime.
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**results, "machine": machine, name: rows}, indent=1))
    print(f"\nwritten: {path}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # torch is an extra
        return None


if __name__ == "__main__":
    main()
