"""Show that the posterior concentrates on a sparse quantised truth as the data grow.

    python -m experiments.consistency --config=experiments/configs/consistency.py \\
        --workdir=runs/consistency

Teachers are ReLU networks whose weights are zeros and a few levels; students have their shape. Two
posteriors are fitted to n noisy examples: SQS and dense Gaussian variational inference, both by the
negative ELBO itself (estimator "sample", all of the KL). Their function error is the root of
E_x E_q (f_w(x) - f(x))^2, and the theory (arXiv:2510.08999) has it fall to zero. Writes
consistency.json and consistency.html: error against n on log axes, slopes fitted.
"""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import config_flags

import sqs_jax
from experiments.atomic_files import write_json
from experiments.pages.page import table, write_page
from experiments.pages.panels import COLORS, QUIET, panel, styled, svg
from sqs_jax.progress import track

_TESTS = 4096  # inputs on which the error is measured
_DECISIONS = 60  # of the mask, in equal shares of the first training; the last quarter keeps it


class Task(NamedTuple):
    """A truth and what is seen of it.

    Attributes:
      truth: weights of the teacher.
      start: weights where students start.
      inputs, targets: examples, [n, inputs] and [n].
      tests: inputs on which functions are compared.
      key: of what trainings draw.
    """

    truth: Any
    start: Any
    inputs: jax.Array
    targets: jax.Array
    tests: jax.Array
    key: jax.Array


def network(params: Any, x: jax.Array) -> jax.Array:
    """Compute a network with one hidden layer of ReLUs and no biases, [n, inputs] -> [n]."""
    return (jax.nn.relu(x @ params["hidden"]["kernel"]) @ params["out"]["kernel"])[:, 0]


def make_task(seed: int, hidden: int, config: Any) -> Task:
    """Draw a teacher of so many hidden units, its examples, and a start near it."""
    keys = iter(jax.random.split(jax.random.key(seed), 10))
    shapes = {"hidden": (config.inputs, hidden), "out": (hidden, 1)}
    truth, start = {}, {}
    for layer, shape in shapes.items():
        levels = jax.random.choice(next(keys), jnp.asarray(config.levels), shape)
        zeros = jax.random.bernoulli(next(keys), config.sparsity, shape)
        weights = jnp.where(zeros, 0.0, levels)
        truth[layer] = {"kernel": weights}
        noise = config.start_noise * jax.random.normal(next(keys), shape)
        start[layer] = {"kernel": weights + noise}

    def draw_inputs(count: int) -> jax.Array:
        return jax.random.uniform(next(keys), (count, config.inputs), minval=-1, maxval=1)

    inputs = draw_inputs(max(config.examples))
    targets = network(truth, inputs)
    targets += config.noise * jax.random.normal(next(keys), targets.shape)
    return Task(truth, start, inputs, targets, draw_inputs(_TESTS), next(keys))


def dense_gaussians(prior_scale: float) -> sqs_jax.Transform:
    """Return mean-field Gaussian variational inference as a Transform (Blundell et al., 2015)."""

    def init(params: Any) -> Any:
        return {"mean": params, "log_scale": jax.tree.map(lambda x: jnp.full_like(x, -4.0), params)}

    def sample(posterior: Any, key: jax.Array, **_: Any) -> Any:
        leaves, treedef = jax.tree.flatten(posterior["mean"])
        keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))
        return jax.tree.map(
            lambda mean, scale, key: mean + jnp.exp(scale) * jax.random.normal(key, mean.shape),
            posterior["mean"], posterior["log_scale"], keys,
        )  # fmt: skip

    def kl(posterior: Any, **_: Any) -> jax.Array:
        def of(mean: jax.Array, log_scale: jax.Array) -> jax.Array:
            square = (jnp.exp(2 * log_scale) + mean**2) / prior_scale**2
            return jnp.sum(jnp.log(prior_scale) - log_scale + 0.5 * square - 0.5)

        each = jax.tree.map(of, posterior["mean"], posterior["log_scale"])
        return sum(jax.tree.leaves(each), start=jnp.zeros(()))

    def mean(posterior: Any, **_: Any) -> Any:
        return posterior["mean"]

    return sqs_jax.Transform(init, mean, sample, mean, kl, compress=mean)


class Student:
    """Fits one kind of posterior to tasks of one size; compiles once for all numbers of examples.

    Batches are drawn with replacement, so that every number of examples is the same program.
    """

    def __init__(self, transform: sqs_jax.Transform, config: Any, *, sparse: bool) -> None:
        """Prepare.

        Args:
          transform: of the posterior.
          config: the experiment.
          sparse: whether it has a structure to be found first.
        """
        self.transform, self._config, self._sparse = transform, config, sparse
        self._descend = jax.jit(self._steps, static_argnames=("estimator", "train", "count"))
        self._squares = jax.jit(self._square_error)

    def _steps(
        self, posterior: Any, task: Task, examples: Any, first: Any, moments: Any, *,
        estimator: Any, train: tuple[str, ...], count: int,
    ) -> tuple[Any, Any]:  # fmt: skip
        config = self._config
        sampling = estimator == "sample"
        rate, steps = (
            (config.learning_rate, config.steps)
            if sampling
            else (config.structure_rate, config.structure_steps)
        )

        def nll(params: Any, batch: jax.Array) -> tuple[jax.Array, None]:
            residuals = network(params, task.inputs[batch]) - task.targets[batch]
            return jnp.mean(residuals**2) / (2 * config.noise**2), None

        loss_fn = sqs_jax.elbo(
            self.transform, nll, num_data=1, estimator=estimator,
            kl_weight=lambda _: (1.0 if sampling else 0.0) / examples,
            temperature=config.temperature, relaxation=config.relaxation,
        )  # fmt: skip
        optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
        trainable, fixed = sqs_jax.partition(posterior, train=train)

        def step(state: Any, step: jax.Array) -> tuple[Any, None]:
            trainable, moments = state
            batch_key, draw_key = jax.random.split(jax.random.fold_in(task.key, step))
            batch = jax.random.randint(batch_key, (config.batch_size,), 0, examples)
            gradient = jax.grad(
                lambda part: loss_fn(sqs_jax.combine(part, fixed), batch, draw_key, step)[0]
            )(trainable)
            updates, moments = optimizer.update(gradient, moments, trainable)
            return (optax.apply_updates(trainable, updates), moments), None

        if moments is None:
            moments = optimizer.init(trainable)
        state, _ = jax.lax.scan(step, (trainable, moments), first + jnp.arange(count))
        return sqs_jax.combine(state[0], fixed), state[1]

    def find_structure(self, task: Task, examples: int) -> Any:
        """Return an SQS posterior whose weights are decided: pruned, and each at a level."""
        config, moments = self._config, None
        weights = jax.tree.leaves(task.truth)
        sparsity = sum(int((w == 0).sum()) for w in weights) / sum(w.size for w in weights)
        posterior = self.transform.init(task.start)
        count = config.structure_steps // _DECISIONS
        for decision in range(_DECISIONS):
            if 4 * decision < 3 * _DECISIONS:
                posterior = sqs_jax.prune(posterior, sparsity)
                posterior = sqs_jax.refit(sqs_jax.revive(posterior))
            posterior, moments = self._descend(
                posterior, task, examples, decision * count, moments,
                estimator="mode", train=("loc", "means"), count=count,
            )  # fmt: skip
        levels = self.transform.mode(posterior)
        # Each latent weight at its level, and components narrow: what the ELBO makes of that.
        return {
            layer: {
                "kernel": leaf["kernel"].replace(
                    loc=jnp.where(leaf["kernel"].kept, levels[layer]["kernel"], leaf["kernel"].loc),
                    log_scales=jnp.full_like(leaf["kernel"].log_scales, jnp.log(0.02)),
                )
            }
            for layer, leaf in posterior.items()
        }

    def error(self, task: Task, examples: int) -> float:
        """Fit the posterior to the first examples; returns its function error."""
        config = self._config
        train = ("gate", "means", "spread", "dense")  # whichever of them it has
        find = (
            self.find_structure if self._sparse else lambda task, _: self.transform.init(task.start)
        )
        posterior = find(task, examples)
        posterior, _ = self._descend(
            posterior, task, examples, 0, None, estimator="sample", train=train, count=config.steps
        )
        return float(jnp.sqrt(self._squares(posterior, task)))

    def _square_error(self, posterior: Any, task: Task) -> jax.Array:
        truth = network(task.truth, task.tests)
        sample = self.transform.sample
        assert sample is not None  # both do

        def of_draw(key: jax.Array) -> jax.Array:
            # so little relaxed that gates and components are decided
            draw = sample(posterior, key, temperature=self._config.temperature, relaxation=0.01)
            return jnp.mean((network(draw, task.tests) - truth) ** 2)

        return jnp.mean(jax.lax.map(of_draw, jax.random.split(task.key, self._config.draws)))


def students(config: Any) -> dict[str, Student]:
    """Return what is compared, by name."""
    prior = sqs_jax.SpikeSlabPrior(inclusion=config.prior_inclusion, scale=config.prior_scale)
    rule = sqs_jax.Rule(components=config.components)
    return {
        "SQS": Student(
            sqs_jax.spike_slab_gmm([rule], prior=prior, evaluation="loop"), config, sparse=True
        ),
        "dense Gaussians": Student(dense_gaussians(config.prior_scale), config, sparse=False),
    }


def slope(examples: list[int], errors: list[float]) -> float:
    """Fit log error = a + slope * log n."""
    return float(np.polyfit(np.log(examples), np.log(errors), 1)[0])


def measure(config: Any) -> list[dict[str, Any]]:
    """Return a row per posterior, size, seed and number of examples."""
    rows = []
    for hidden in config.hidden:
        tasks = {seed: make_task(seed, hidden, config) for seed in config.seeds}
        for name, student in students(config).items():
            cases = [(seed, n) for seed in config.seeds for n in config.examples]
            for seed, n in track(cases, f"{name}, {hidden} hidden units", keep=True):
                error = student.error(tasks[seed], n)
                rows.append(
                    {"posterior": name, "hidden": hidden, "seed": seed, "n": n, "error": error}
                )
    return rows


def medians(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[int, float]]:
    """Join the seeds: (posterior, hidden) -> n -> median error."""
    found: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in rows:
        line = found.setdefault((row["posterior"], row["hidden"]), {})
        line.setdefault(row["n"], []).append(row["error"])
    return {
        key: {n: statistics.median(errors) for n, errors in line.items()}
        for key, line in found.items()
    }


@styled
def figure(lines: dict[tuple[str, int], dict[int, float]], hidden: int) -> str:
    """Draw error against n for teachers of one size, on log axes."""
    picture, axes = panel(360, 300, f"Teacher of {hidden} hidden units", left=52, bottom=44)
    colors = {"SQS": COLORS["mode"], "dense Gaussians": COLORS["averaged"]}
    for (name, size), line in lines.items():
        if size == hidden:
            fitted = f"{name}, slope {slope(list(line), list(line.values())):.2f}"
            axes.plot(
                list(line),
                list(line.values()),
                "o-",
                ms=5,
                lw=1.4,
                color=colors[name],
                label=fitted,
            )
    n = np.asarray(sorted(next(iter(lines.values()))), float)
    top = max(line[int(n[0])] for (_, size), line in lines.items() if size == hidden)
    axes.plot(n, top * (n / n[0]) ** -0.5, color=QUIET, lw=1, ls=(0, (4, 3)), label="slope -0.50")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.set_xlabel("examples, n")
    axes.legend(frameon=False, fontsize=9)
    return svg(picture, f"error-{hidden}", f"function error against n, {hidden} hidden units")


def main(_: Any) -> None:
    workdir, config = Path(flags.FLAGS.workdir), flags.FLAGS.config
    workdir.mkdir(parents=True, exist_ok=True)
    rows = measure(config)
    write_json(workdir / "consistency.json", rows)
    lines = medians(rows)
    cells = [
        [f"{name}, {hidden}", *(f"{error:.4f}" for error in line.values()),
         f"{slope(list(line), list(line.values())):.2f}"]
        for (name, hidden), line in lines.items()
    ]  # fmt: skip
    figures = "".join(figure(lines, hidden) for hidden in config.hidden)
    page = write_page(
        workdir / "consistency.html",
        "Consistency",
        "Function error of posteriors fitted to n noisy examples of sparse quantised networks: "
        f"medians over {len(config.seeds)} seeds.",
        f'<div class="panels">{figures}</div>',
        table(["posterior, hidden units", *map(str, config.examples), "slope"], cells),
    )
    for cell in cells:
        print("  ".join(f"{text:>8}" for text in cell))
    print(f"page: {page}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.")
    flags.DEFINE_string("workdir", None, "Folder of the results; made if it is not there.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
