"""Judge a compressed language model, from its file, by tasks of the lm-eval harness.

    python -m experiments.harness --workdir=runs/stories260k --tasks=lambada_openai,piqa

Reads a finished run of experiments.train or experiments.calibrate; --file=dense.sqs judges what it
came from. Tasks are the harness's own, which it downloads, or files of --include, a folder. Prints
their metrics, and writes harness_<file>.json into the run's folder. Needs the extra `harness`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from experiments.atomic_files import write_json
from experiments.models.decoder import Decoder
from experiments.models.generation import go_on
from experiments.task.language_run import LanguageRun, open_language_run
from sqs_jax.progress import track

_LENGTH = 32  # tokens; sequences are padded to it times a power of two: few programs


class HarnessModel(TemplateLM):
    """What the harness asks a language model: how likely texts are, and how it goes on.

    A text begins with the token that the tokenizer begins texts with, if it has one, and if it is
    not cut: of one that is longer than the context the end is read.

    Args:
      run: the model.
      batch: sequences side by side.
    """

    def __init__(self, run: LanguageRun, batch: int) -> None:
        """See the class."""
        super().__init__()
        self.run, self.batch = run, batch
        self.context = run.model.config.context
        self.begin = run.tokenizer.encode("").ids[:1]

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        end: Any = self.run.config.model.shape.get("eos_token_id") or 0
        return int((self.begin or np.atleast_1d(end))[0])

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Return tokens without special ones."""
        ids: list[int] = self.run.tokenizer.encode(string, add_special_tokens=False).ids
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether it is the most likely) of each continuation."""
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        rows = []
        for number, (_, context, continuation) in enumerate(requests):
            begin = self.begin if context[:1] != self.begin else []
            tokens = [*begin, *context, *continuation][-self.context - 1 :]
            asked = min(len(continuation), len(tokens) - 1)
            rows.append((number, tokens, asked))
        rows.sort(key=lambda row: len(row[1]))
        parts = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        for part in track(parts, "log-likelihoods"):
            longest = len(part[-1][1]) - 1
            length = min(_LENGTH * 2 ** max(0, (longest - 1) // _LENGTH).bit_length(), self.context)
            inputs = np.zeros((self.batch, length), np.int32)
            targets = np.full((self.batch, length), -1, np.int32)
            for i, (_, tokens, asked) in enumerate(part):
                end = len(tokens) - 1
                inputs[i, :end] = tokens[:-1]
                targets[i, end - asked : end] = tokens[end + 1 - asked :]
            sums, greedy = map(np.asarray, _judge(self.run.model, self.run.params, inputs, targets))
            for i, (number, _, _) in enumerate(part):
                found[number] = float(sums[i]), bool(greedy[i])
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, each token once, in windows of the context."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.eot_token_id, self.context - 1, 1
            )
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        judged = self._loglikelihood_tokens(windows)
        for number, (total, _) in zip(owners, judged, strict=True):
            totals[number] += total
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Go on with texts, greedily, until one of the strings that end an answer."""
        found = []
        for request in track(requests, "answers"):
            text, asked = request.args
            count = min(int(asked.get("max_gen_toks", 128)), self.context - 1)
            tokens = [*self.begin, *self.tok_encode(text)] or [self.eot_token_id]
            tokens = tokens[-(self.context - count) :]
            whole = go_on(
                self.run.model, self.run.params, jnp.asarray([tokens]), count,
                jax.random.key(0), temperature=0.0,
            )  # fmt: skip
            answer = self.run.tokenizer.decode(np.asarray(whole)[0, len(tokens) :].tolist())
            ends = asked.get("until") or []
            for end in [ends] if isinstance(ends, str) else ends:
                answer = answer.split(end)[0] if end else answer
            found.append(answer)
        return found


@partial(jax.jit, static_argnums=0)
def _judge(
    model: Decoder, params: Any, inputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the summed log-probability of the targets >= 0, and whether all are the greatest."""
    logits: Any = model.apply({"params": params}, inputs)
    asked = targets >= 0
    each = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1
    )[..., 0]
    greedy = jnp.all((jnp.argmax(logits, -1) == targets) | ~asked, axis=1)
    return jnp.sum(each, axis=1, where=asked), greedy


def judge(
    workdir: Path, tasks: list[str], *, file: str, include: str, batch: int, limit: int
) -> dict[str, Any]:
    """Return the metrics of each task.

    Raises:
      FileNotFoundError: if there is no such run or file.
      ValueError: for a task that the harness does not know.
    """
    run = open_language_run(workdir, file)
    manager = TaskManager(include_path=include or None)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ValueError(
            f"The harness knows no task {', '.join(unknown)}; give names of its own, or "
            "--include, a folder with their files."
        )
    found = simple_evaluate(
        HarnessModel(run, batch), tasks=tasks, task_manager=manager, limit=limit or None,
        log_samples=False, bootstrap_iters=0,
    )  # fmt: skip
    assert found is not None  # of one process
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for task, metrics in found["results"].items()
    }


def main(_: Any) -> None:
    given = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    workdir = Path(given.workdir)
    found = judge(
        workdir, given.tasks, file=given.file, include=given.include, batch=given.batch,
        limit=given.limit,
    )  # fmt: skip
    write_json(workdir / f"harness_{Path(given.file).stem}.json", found)
    for task, metrics in found.items():
        for name, value in metrics.items():
            print(f"{task:24} {name.split(',')[0]:20} {value:.4f}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_list("tasks", None, "Names of the harness's tasks.", required=True)
    flags.DEFINE_string("file", "model.sqs", "Of the folder: model.sqs, dense.sqs, ...")
    flags.DEFINE_string("include", "", "A folder with files of more tasks.")
    flags.DEFINE_integer("batch", 16, "Texts side by side.", lower_bound=1)
    flags.DEFINE_integer("limit", 0, "Examples of each task; 0: all.", lower_bound=0)
    app.run(main)
