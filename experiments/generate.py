"""Generate text with a compressed language model from its file, and measure the speed.

    python -m experiments.generate --workdir=runs/stories260k --prompt="Once upon a time"

Reads config.json, tokenizer.json and model.sqs of a finished run of experiments.train or
experiments.calibrate; --file=dense.sqs is the dense network. Prints the text, the seconds of
loading, the tokens per second of --batch texts without compilation, and the peak memory of the
process and the accelerator.
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

from experiments.language_run import open_language_run
from experiments.models.generation import generate_tokens
from sqs_jax.progress import progress


def generate(
    workdir: Path, prompt: str, count: int, *, file: str, batch: int, temperature: float, seed: int
) -> dict[str, Any]:
    """Generate tokens after a prompt, and measure time and memory.

    Args:
      workdir: Folder of a finished run.
      prompt: Beginning of the text, at least one token.
      count: Number of tokens to generate.
      file: Name of the .sqs file in the folder.
      batch: Number of texts per batch.
      temperature: Temperature of the draws; 0 chooses the most probable token.
      seed: Seed of the draws.

    Returns:
      "text", "bytes" of the file, "load_seconds", "tokens_per_second", and the peak memory
      "host_bytes" and "device_bytes"; the last is None if the device does not report memory.

    Raises:
      FileNotFoundError: If the run or the file does not exist.
      ValueError: If the network is no decoder, or the text is longer than the context.
    """
    started = time.monotonic()
    model, tokenizer, params, _ = open_language_run(workdir, file)
    load_seconds = time.monotonic() - started
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
        return np.asarray(
            generate_tokens(model, params, prompts, count, key, temperature=temperature)
        )

    tokens = run()  # compiles
    started = time.monotonic()
    run()
    seconds = time.monotonic() - started
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes or kibibytes
    return {
        "text": tokenizer.decode(tokens[0].tolist()),
        "bytes": (workdir / file).stat().st_size,
        "load_seconds": load_seconds,
        "tokens_per_second": batch * count / seconds,
        "host_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "device_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def main(_: Any) -> None:
    options = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # jax logs every backend that is not available
    result = generate(
        Path(options.workdir),
        options.prompt,
        options.tokens,
        file=options.file,
        batch=options.batch,
        temperature=options.temperature,
        seed=options.seed,
    )
    print(result["text"])
    memory = f"{result['host_bytes'] / 1e6:,.0f} MB of the process"
    if result["device_bytes"]:
        memory += f", {result['device_bytes'] / 1e6:,.0f} MB of the accelerator"
    print(
        f"\n{options.file}: {result['bytes']:,} bytes, loaded in {result['load_seconds']:.2f} s; "
        f"{result['tokens_per_second']:,.0f} tokens/s ({options.batch} at a time); at most {memory}"
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_string("prompt", "Once upon a time", "Beginning of the text.")
    flags.DEFINE_string("file", "model.sqs", "Name of the file: model.sqs, dense.sqs, ...")
    flags.DEFINE_integer("tokens", 200, "Tokens to generate.", lower_bound=1)
    flags.DEFINE_integer("batch", 1, "Texts per batch.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "Temperature; 0: the most probable token.", 0.0)
    flags.DEFINE_integer("seed", 0, "Seed of the draws.")
    app.run(main)
