"""Draw the points of several sweeps in a figure of accuracy against bytes.

    python -m experiments.frontier --sweeps=runs/ours,runs/paper --page=runs/frontier.html

Reads results.json of each sweep; the page lists the command of every point. Sweeps may differ in
their recipe or in their network.
"""

import json
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.pages.pareto_front import write_frontier


def read_sweeps(folders: list[Path]) -> list[dict[str, Any]]:
    """Return the results of several sweeps, with the sweep's folder as "sweep".

    Raises:
      FileNotFoundError: If folders have no results.json; the message lists the folders.
    """
    files = {folder: folder / "results.json" for folder in folders}
    missing = [str(folder) for folder, file in files.items() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)}: no results.json there; experiments.sweep writes it."
        )
    return [
        result | {"sweep": str(folder)}
        for folder, file in files.items()
        for result in json.loads(file.read_text())
    ]


def main(_: Any) -> None:
    results = read_sweeps([Path(name) for name in flags.FLAGS.sweeps])
    if not results:
        raise app.UsageError(f"--sweeps={','.join(flags.FLAGS.sweeps)}: no point is finished.")
    print(f"frontier: {write_frontier(Path(flags.FLAGS.page), results)}")


if __name__ == "__main__":
    flags.DEFINE_list("sweeps", None, "Folders of sweeps.", required=True)
    flags.DEFINE_string("page", "frontier.html", "The page that is written.")
    app.run(main)
