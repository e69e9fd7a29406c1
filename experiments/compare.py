"""Compare the accuracy of compression methods at equal bytes, trained or not.

    python -m experiments.compare --config=experiments/configs/stories260k.py \
        --config.data.directory=DATA --config.model.weights=DATA/stories260K.bin \
        --config.data.tokenizer=DATA/tok512.bin --bits=6,5,4,3 --workdir=runs/compare_stories

Every method gets the same weights, examples (`config.calibration.examples` of the training part),
held-out data, coder and size of the file. The size is in bits per weight of the network or, with
--bytes, in bytes. Methods whose names end in "-trained" also get the config's training, steps and
teacher. Each point runs in a process of its own; the same command resumes a comparison.

Writes comparison.html, comparison_*.svg, comparison.md and results.json, with all points in the
folder.
"""

import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.calibration.statistics import check_choice
from experiments.comparison import compression_aware_training as trained
from experiments.comparison.measurement import run_point
from experiments.comparison.points import compare, points_of
from experiments.comparison.post_training import METHODS
from experiments.files import write_json
from experiments.problem import described, load_problem, starting_variables
from experiments.training.workdir import claim_workdir, hold_workdir


def main(_: Any) -> None:
    options = flags.FLAGS
    if not options.config or not options.workdir:
        raise app.UsageError("--config and --workdir are needed.")
    logging.set_verbosity(logging.WARNING)  # jax logs every backend that is not available
    config, workdir = described(options.config), Path(options.workdir)
    if options.method:
        result = run_point(config, options.method, workdir, options.setting)
        write_json(workdir / "result.json", result)
        return
    methods = (*METHODS, *trained.METHODS) if config.model.weights else METHODS
    if set(options.methods) & {*trained.METHODS} - {*methods}:
        raise app.UsageError(
            "Methods that train start from config.model.weights, which is empty: name the weights, "
            "such as dense.sqs of another run."
        )
    if unknown := set(options.methods) - {*methods}:
        raise app.UsageError(f"--methods: {', '.join(unknown)}; there are {', '.join(methods)}.")
    sizes = [int(size) for size in options.bytes]
    if options.bits:
        problem = load_problem(config, workdir)
        params = starting_variables(problem, config)["params"]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        sizes += [int(float(bits) * count / 8) for bits in options.bits]
    if not sizes:
        raise app.UsageError("--bits or --bytes is needed: the sizes of the files.")
    if any(arg.startswith("--config") and "=" not in arg for arg in sys.argv[1:]):
        raise app.UsageError("Write --config=FILE and --config.FIELD=VALUE, with =.")
    points = points_of(options.methods or methods, sizes, [int(seed) for seed in options.seeds])
    check_choice(config)
    claim_workdir(workdir, config)
    hold_workdir(workdir)
    print(f"comparison: {compare(workdir, points, sizes)}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Experiment: experiments/configs/stories260k.py, ...", lock_config=True
    )
    flags.DEFINE_string("workdir", "", "Folder of the comparison; made if it is not there.")
    flags.DEFINE_list("bits", [], "Sizes of the files, bits per weight of the network.")
    flags.DEFINE_list("bytes", [], "Sizes of the files, bytes.")
    flags.DEFINE_list("seeds", ["0"], "Seeds of the examples.")
    flags.DEFINE_list("methods", [], "Names of the methods; all by default.")
    flags.DEFINE_string("method", "", "Method of a single point; the command above sets it.")
    flags.DEFINE_integer("setting", 0, "Index of the setting of a method that takes no size.")
    app.run(main)
