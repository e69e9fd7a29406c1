"""Tables and figures of a run's report."""

import numpy as np

from experiments.pages import figures
from experiments.pages.run_files import Run
from experiments.pages.tables import NETWORKS, leaves_table, networks_table, plural, points

_MAX_HISTOGRAMS = 6


def sections(run: Run) -> dict[str, str]:
    """Return the tables and figures of a report.

    Args:
      run: Finished run.

    Returns:
      HTML by the name of the template's field.
    """
    mean, mode = run.evaluation["mean"], run.evaluation["mode"]
    missed = mean["correct"] - mode["correct"]
    gap = "Mean to mode: 0 points. One value of the codebook for every weight costs no accuracy."
    if missed:
        gap = (
            f"Mean to mode: {'−' if missed > 0 else '+'}{points(mean, mode)} points "
            f"({plural(abs(missed), run.unit)}). That is what it changes to give every weight "
            "one value of the codebook instead of its average."
        )
    distill = run.config["sqs"]["distill_weight"]
    loss = "The loss is the negative log-likelihood of the labels, without the KL term."
    if distill:
        loss = (
            "The loss is the negative log-likelihood of the labels, without the KL term; after "
            f"the dashed line {100 * distill:g} % of it is the distance to the first dense "
            "network’s softened predictions, so the levels before and after do not compare."
        )
    drawn = sorted(run.distributions, key=lambda p: -sum(run.distributions[p]["all"]))
    shown = drawn[:_MAX_HISTOGRAMS]
    return {
        "networks": networks_table(run.evaluation, perplexity=run.unit == "token"),
        "gap": gap,
        "comparison": "\n".join(
            figures.comparison(
                run.evaluation,
                {n: label for n, (label, _) in NETWORKS.items() if n in run.evaluation},
            )
        ),
        "sizes": "\n".join(figures.sizes(run.size)),
        "histogram_count": (
            "largest first" if len(shown) == len(drawn) else f"the {len(shown)} largest"
        ),
        "histogram_panels": "panels" if len(shown) in (3, 5, 6) else "panels two",
        "histograms": "\n".join(
            figures.histogram(f"histogram-{i}", path, _distribution(run, path))
            for i, path in enumerate(shown)
        ),
        "layers": "\n".join(figures.layers(run.size)),
        "leaves": leaves_table(run.size),
        "curves": "\n".join(figures.curves(run.metrics)),
        "loss": loss,
    }


def _distribution(run: Run, path: str) -> figures.Distribution:
    """Join a tensor's latent weights and mixture with its codebook and codes."""
    described = run.distributions[path]
    leaf = run.leaves[f"params/{path}"]
    codes, book = np.asarray(leaf.codes), np.asarray(leaf.codebook, np.float64)
    *stack, windows, components = book.shape
    # Number of weights with each value, [slices, W, K]; each slice of a stack has a codebook.
    users = np.stack(
        [
            np.bincount(part, minlength=windows * components + 1)[1:]
            for part in codes.reshape(int(np.prod(stack)), -1)
        ]
    ).reshape(-1, windows, components)
    # A component at zero comes first and is not in the codebook.
    means, scales, shares = (
        np.array(described[name])[-users.size :] for name in ("means", "scales", "shares")
    )
    shares = shares.reshape(users.shape)
    return figures.Distribution(
        edges=np.array(described["edges"]),
        all=np.array(described["all"]),
        kept=np.array(described["kept"]),
        means=means,
        scales=scales,
        counts=(shares * users.sum(-1, keepdims=True)).ravel(),
        values=book.ravel(),
        users=users.ravel(),
    )
