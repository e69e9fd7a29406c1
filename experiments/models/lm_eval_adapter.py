"""Adapter of language models to the lm-eval harness."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from experiments.language_run import LanguageRun
from experiments.models.decoder import Decoder
from experiments.models.generation import generate_tokens
from sqs_jax.progress import track

_LENGTH = 32  # tokens; padded lengths are this times a power of two, so that few compile


class HarnessModel(TemplateLM):
    """Adapter of a language model to lm-eval: log-likelihoods and greedy continuations.

    A text begins with the tokenizer's begin token, if there is one. Texts longer than the context
    lose their beginning, this token included.

    Args:
      run: Language model.
      batch: Number of sequences per batch.
    """

    def __init__(self, run: LanguageRun, batch: int) -> None:
        """Store the model; see the class for the arguments."""
        super().__init__()
        self.run, self.batch = run, batch
        self.context = run.model.config.context
        self.begin = run.tokenizer.encode("").ids[:1]

    @property
    def eot_token_id(self) -> int:
        """Id of the token before a text without context."""
        end: Any = self.run.config.model.shape.get("eos_token_id") or 0
        return int((self.begin or np.atleast_1d(end))[0])

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Return the tokens of a string without special tokens."""
        ids: list[int] = self.run.tokenizer.encode(string, add_special_tokens=False).ids
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy) of each continuation."""
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        rows = []  # (index of the request, tokens, number of tokens to score)
        for number, (_, context, continuation) in enumerate(requests):
            begin = self.begin if context[:1] != self.begin else []
            tokens = [*begin, *context, *continuation][-self.context - 1 :]
            rows.append((number, tokens, min(len(continuation), len(tokens) - 1)))
        rows.sort(key=lambda row: len(row[1]))
        batches = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        for batch in track(batches, "log-likelihoods"):
            longest = len(batch[-1][1]) - 1
            length = min(_LENGTH * 2 ** max(0, (longest - 1) // _LENGTH).bit_length(), self.context)
            inputs = np.zeros((self.batch, length), np.int32)
            targets = np.full((self.batch, length), -1, np.int32)
            for i, (_, tokens, count) in enumerate(batch):
                end = len(tokens) - 1
                inputs[i, :end] = tokens[:-1]
                targets[i, end - count : end] = tokens[end + 1 - count :]
            sums, greedy = map(np.asarray, _judge(self.run.model, self.run.params, inputs, targets))
            for i, (number, _, _) in enumerate(batch):
                results[number] = float(sums[i]), bool(greedy[i])
        return results

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of texts, nats, in windows of the context."""
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
        """Generate greedily until a string that ends an answer."""
        answers = []
        for request in track(requests, "answers"):
            text, options = request.args
            count = min(int(options.get("max_gen_toks", 128)), self.context - 1)
            tokens = [*self.begin, *self.tok_encode(text)] or [self.eot_token_id]
            tokens = tokens[-(self.context - count) :]
            generated = generate_tokens(
                self.run.model, self.run.params, jnp.asarray([tokens]), count,
                jax.random.key(0), temperature=0.0,
            )  # fmt: skip
            answer = self.run.tokenizer.decode(np.asarray(generated)[0, len(tokens) :].tolist())
            ends = options.get("until") or []
            for end in [ends] if isinstance(ends, str) else ends:
                answer = answer.split(end)[0] if end else answer
            answers.append(answer)
        return answers


@partial(jax.jit, static_argnums=0)
def _judge(
    model: Decoder, params: Any, inputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the summed log-probability of targets >= 0, and whether all are greedy."""
    logits: Any = model.apply({"params": params}, inputs)
    scored = targets >= 0
    log_probabilities = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1
    )[..., 0]
    greedy = jnp.all((jnp.argmax(logits, -1) == targets) | ~scored, axis=1)
    return jnp.sum(log_probabilities, axis=1, where=scored), greedy
