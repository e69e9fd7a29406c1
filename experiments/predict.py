"""Predict file size, memory and time of an experiment before the run.

    python -m experiments.predict --config=experiments/configs/qwen2_5.py:0.5b --devices=8

The prediction uses shapes only, sharded as in a training on --devices devices, of which
`config.mesh.fsdp` share the trained arrays. Only images of unknown datasets are read.

- If `config.sqs.target_bytes` is 0, the file size is about an upper bound: that of independent
  codes at the configured sparsity, with K equally likely levels.
- Activations are an upper bound: all arrays that the forward pass of a block computes, without
  fusion.
- A decoder that labels sentences counts as a decoder that predicts tokens.
- Second moments of inputs are not counted.

Seconds are those of one device of this machine. A product of two matrices measures its speed; a
model is assumed to reach half of that. Work of the host per weight is added, compilation is not.
The prediction is within a factor of two.
"""

from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.cost_model.duration import predict_seconds
from experiments.cost_model.memory import predict
from experiments.task.load import described


def main(_: Any) -> None:
    options = flags.FLAGS
    if not options.config:
        raise app.UsageError("--config is needed.")
    logging.set_verbosity(logging.WARNING)  # JAX logs every missing backend.
    config = described(options.config)
    for name, count in predict(config, options.devices).items():
        unit = "" if name == "weights" else f"  {count / 2**30:8.3f} GiB"
        print(f"{name:26} {count:16,}{unit}")
    for name, seconds in predict_seconds(config).items():
        print(f"{name:26} {seconds:16,.2f}  seconds on one device here")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment.", lock_config=True)
    flags.DEFINE_integer("devices", 1, "Devices of the training.", lower_bound=1)
    app.run(main)
