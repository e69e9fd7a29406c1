"""Fifty steps give equal results on 1 to 8 devices and on two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.training.sharding import make_mesh
from tests.experiments.fifty_steps import check_layout, experiment, train

COMMAND = [sys.executable, "-W", "error", "-m", "tests.experiments.fifty_steps"]


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags}


@pytest.mark.scale
def test_losses_agree_on_all_meshes_and_on_two_processes(tmp_path: Path) -> None:
    def start(devices: int, *place: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, str(tmp_path), *place],
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    groups: list[list[Any]] = [[(8,)], [(2, address, "2", "0"), (2, address, "2", "1")]]
    actual = {}
    for group in groups:
        processes = [start(*arguments) for arguments in group]
        for process in processes:
            out, err = process.communicate()
            assert process.returncode == 0, err[-4000:]
            if printed := [line for line in out.splitlines() if line.startswith("{")]:
                actual |= json.loads(printed[0])
    assert len(actual) == 6
    reference = actual["1 x 1"]
    assert [line["step"] for line in reference] == [10, 20, 30, 40, 50]
    assert reference[-1]["loss"] < 0.9 * reference[0]["loss"]
    for name, lines in actual.items():
        for line, expected in zip(lines, reference, strict=True):
            for figure in ("loss", "nll", "kl_per_example", "sparsity"):
                np.testing.assert_allclose(
                    line[figure], expected[figure], rtol=1e-4, err_msg=f"{name}: {figure}"
                )
    # Their last checkpoints, taken up by this process on its two devices: nothing is trained again.
    config = experiment()
    config.mesh.data, config.mesh.fsdp = 1, 2
    mesh = make_mesh(config)
    states = [train(config, tmp_path / name, mesh) for name in ("8 x 1", "2 x 2 on 2 processes")]
    for state in states:
        check_layout(state, 2)
    leaves = (jax.tree.leaves(state.posterior) for state in states)
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "batch", "said"),
    [
        ((3, 1), 64, "config.mesh.data is 3 .* there are 2 devices"),
        ((-1, -1), 64, "config.mesh.data is -1"),
        ((-1, 4), 64, "config.mesh.fsdp 4"),
        ((-1, 1), 63, "config.batch_size is 63"),
    ],
)
def test_meshes_that_do_not_fit_are_named(sizes: tuple[int, int], batch: int, said: str) -> None:
    config = experiment()
    config.mesh.data, config.mesh.fsdp = sizes
    config.batch_size = batch
    with pytest.raises(ValueError, match=said):
        make_mesh(config)


def test_minus_one_is_the_rest() -> None:
    config = experiment()
    assert dict(make_mesh(config).shape) == {"data": jax.device_count(), "fsdp": 1}
    config.mesh.data, config.mesh.fsdp = 1, -1
    assert dict(make_mesh(config).shape) == {"data": 1, "fsdp": jax.device_count()}
