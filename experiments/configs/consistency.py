"""Consistency of the posterior: sparse quantized teachers, and growing data.

Command: python -m experiments.consistency --config=experiments/configs/consistency.py \
    --workdir=runs/consistency
Hardware: one CPU core.
Time: five minutes.
Expected: the error falls with n, at the rate of the theory for the smallest teachers
    (docs/results.md).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seeds = (0, 1, 2)  # each draws a teacher, data and a start
    config.inputs = 6  # uniform on [-1, 1]
    config.hidden = (4, 8, 16)  # units of the teachers, and of their students
    config.examples = (128, 256, 512, 1024, 2048, 4096)
    config.levels = (-1.0, -0.5, 0.5, 1.0)  # of the teachers' weights that are not zero
    config.sparsity = 0.6  # chance of a teacher's weight to be zero
    config.noise = 0.1  # standard deviation, known to the likelihood
    # Of the students. Training starts near the truth: the theory is about the optimum of the ELBO,
    # not about how it is found from anywhere.
    config.start_noise = 0.2
    config.components = 4
    config.prior_inclusion = 0.5
    config.prior_scale = 1.0
    config.batch_size = 64
    config.structure_steps = 3_000  # estimator "mode", pruned to the teacher's sparsity
    config.structure_rate = 2e-3
    config.steps = 8_000  # the negative ELBO itself, estimator "sample"
    config.learning_rate = 1e-2
    config.temperature = 0.1
    config.relaxation = 0.5
    config.draws = 64  # over which the error is averaged
    return config
