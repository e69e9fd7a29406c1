"""Let a language model go on with a text, from its file alone, and say how fast it does.

    python -m experiments.generate --workdir=runs/stories260k --prompt="Once upon a time"

Reads config.json, tokenizer.json and model.sqs of a finished run of experiments.train or
experiments.calibrate; --file=dense.sqs is the network that it came from. Prints the text; the
seconds that loading took; tokens per second of --batch texts side by side, without compilation;
and the most memory that the process, and the accelerator, have held.
"""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from experiments.models.generation import go_on
from experiments.task.language_run import open_language_run
from sqs_jax.progress import progress


def generate(
    workdir: Path, prompt: str, count: int, *, file: str, batch: int, temperature: float, seed: int
) -> dict[str, Any]:
    """Go on with a prompt; returns the text, and what loading and going on took.

    Raises:
      FileNotFoundError: if there is no such run or file.
      ValueError: if the network is no decoder, or the text longer than its context.
    """
    started = time.monotonic()
    model, tokenizer, params, _ = open_language_run(workdir, file)
    loaded = time.monotonic() - started
    ids = tokenizer.encode(prompt).ids
    if not ids:
        raise ValueError("--prompt has no token; give a word at least.")
    if len(ids) + count > model.config.context:
        raise ValueError(
            f"{len(ids)} tokens of the prompt and {count} more are longer than the context of "
            f"{model.config.context}; give a smaller --tokens."
        )
    prompts, key = jnp.tile(jnp.asarray(ids), (batch, 1)), jax.random.key(seed)

    @progress("writing")
    def run() -> np.ndarray:
        return np.asarray(go_on(model, params, prompts, count, key, temperature=temperature))

    found = run()  # compiles
    started = time.monotonic()
    run()
    seconds = time.monotonic() - started
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "text": tokenizer.decode(found[0].tolist()),
        "bytes": (workdir / file).stat().st_size,
        "load_seconds": loaded,
        "tokens_per_second": batch * count / seconds,
        "host_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "device_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def main(_: Any) -> None:
    given = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
    found = generate(
        Path(given.workdir),
        given.prompt,
        given.tokens,
        file=given.file,
        batch=given.batch,
        temperature=given.temperature,
        seed=given.seed,
    )
    print(found["text"])
    memory = f"{found['host_bytes'] / 1e6:,.0f} MB of the process"
    if found["device_bytes"]:
        memory += f", {found['device_bytes'] / 1e6:,.0f} MB of the accelerator"
    print(
        f"\n{given.file}: {found['bytes']:,} bytes, loaded in {found['load_seconds']:.2f} s; "
        f"{found['tokens_per_second']:,.0f} tokens/s ({given.batch} at a time); at most {memory}"
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_string("prompt", "Once upon a time", "What the text begins with.")
    flags.DEFINE_string("file", "model.sqs", "Of the folder: model.sqs, dense.sqs, ...")
    flags.DEFINE_integer("tokens", 200, "Tokens to add.", lower_bound=1)
    flags.DEFINE_integer("batch", 1, "Texts side by side.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "Of the draws; 0: the most probable token.", 0.0)
    flags.DEFINE_integer("seed", 0, "Of what is drawn.")
    app.run(main)
