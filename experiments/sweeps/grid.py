"""Grid of a sweep: its axes, and the run of every combination of settings."""

import ast
import itertools
import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from experiments.training.workdir import claim_workdir


class Point(NamedTuple):
    """A combination of the grid.

    Attributes:
      settings: Value by field of the config.
      folder: Folder of the run.
      command: Arguments of Python that train the point.
      config: Config of the run.
    """

    settings: dict[str, Any]
    folder: Path
    command: list[str]
    config: Any

    @property
    def finished(self) -> bool:
        """Whether the run has ended well; a run writes the report last."""
        return (self.folder / "report.html").exists()


def changed(config: Any, settings: dict[str, Any]) -> Any:
    """Copy a config and set fields by their dotted names."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(settings)
    return config


def points(
    axes: dict[str, list[Any]], options: list[str], workdir: Path, config: Any
) -> list[Point]:
    """List all combinations of the axes.

    Args:
      axes: Values by field of the config.
      options: Options of experiments.train that all points share.
      workdir: Folder of the points' folders.
      config: Config that all points share, `options` included.

    Raises:
      ValueError: A finished run has another config.
    """
    combinations = []
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        name = ",".join(f"{field}={value}" for field, value in settings.items()) or "point"
        folder = workdir / name.replace("/", "_").replace(" ", "")
        chosen = [f"--config.{field}={value}" for field, value in settings.items()]
        command = ["-m", "experiments.train", *options, *chosen, f"--workdir={folder}"]
        combinations.append(Point(settings, folder, command, changed(config, settings)))
    for point in combinations:
        if point.finished:  # An unfinished run checks its config itself.
            claim_workdir(point.folder, point.config)
    return combinations


def parse(grid: list[str], config: Any) -> dict[str, list[Any]]:
    """Parse the axes of a grid, FIELD=[VALUE, ...].

    Args:
      grid: Text of each axis.
      config: Config of the experiment, which has the fields.

    Returns:
      Values by field of the config.

    Raises:
      ValueError: An axis cannot be parsed, or its field or values do not fit; the message lists
        every such axis.
    """
    fields, axes, problems = flatten_dict(config.to_dict(), sep="."), {}, []
    for text in grid:
        field, _, written = text.partition("=")
        field = field.strip().removeprefix("config.")
        try:
            values = ast.literal_eval(written)
        except (SyntaxError, ValueError):
            problems.append(f"{text!r}: write it as FIELD=[VALUE, ...], strings in quotes")
            continue
        if not isinstance(values, list) or not values:
            problems.append(f"{text!r}: the values must be a list, [VALUE, ...], of one or more")
        elif field not in fields:
            problems.append(f"{text!r}: the config has no field {field}")
        elif field in axes:
            problems.append(f"{text!r}: {field} has an axis already")
        elif len(set(map(repr, values))) < len(values):
            problems.append(f"{text!r}: a value is there twice")
        for value in values if field in fields and isinstance(values, list) else ():
            try:
                changed(config, {field: value})
            except (TypeError, ValueError) as error:
                problems.append(f"{text!r}: {value!r} does not fit: {error}")
        axes[field] = values
    if problems:
        raise ValueError("--grid cannot be used:\n  " + "\n  ".join(problems))
    return axes


def result(point: Point) -> dict[str, Any]:
    """Read the settings, the command and the scores of a finished point."""
    evaluation = json.loads((point.folder / "evaluation.json").read_text())
    return {
        "settings": point.settings,
        "command": shlex.join(["python", *point.command]),
        "evaluation": evaluation,
    }
