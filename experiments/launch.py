"""Run a training as several processes of this machine, over its loopback.

    python -m experiments.launch --processes=2 --devices_per_process=2 -- \\
        --config=experiments/configs/digits.py --workdir=runs/digits

What follows the -- are the flags of experiments.train. SIGTERM is passed on to all processes.
When one dies the others are ended too; the same command goes on from the latest checkpoint. Exits
as the processes do (75 after SIGTERM), or with the code of the one that died.
"""

import os
import signal
import socket
import subprocess
import sys
import time

from absl import app, flags

from experiments.training.processes import STOPPED

_PROCESSES = flags.DEFINE_integer("processes", 2, "How many.", lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    "devices_per_process", None, "Devices emulated on the CPU; by default those there are.", 1
)
# After the first has died: time for the others to say what they know.
_GRACE_SECONDS = 5.0


def start(index: int, address: str, options: list[str]) -> subprocess.Popen[bytes]:
    """Start one process of the training."""
    environment = dict(os.environ)
    if _DEVICES.value:
        environment["JAX_PLATFORMS"] = "cpu"
        environment["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={_DEVICES.value} "
            # else collectives that need not wait for each other run in any order: processes with
            # few threads then wait in different ones, for ever
            "--xla_cpu_enable_concurrency_optimized_scheduler=false"
        )
    place = [
        f"--coordinator_address={address}",
        f"--num_processes={_PROCESSES.value}",
        f"--process_id={index}",
    ]
    command = [sys.executable, "-m", "experiments.train", *options, *place]
    return subprocess.Popen(command, env=environment)


def wait(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, or for the first that dies; returns the code to exit with."""
    while True:
        codes = [process.poll() for process in processes]
        found = {i: code for i, code in enumerate(codes) if code and code != STOPPED}
        if found:
            break
        if None not in codes:
            return max(code or 0 for code in codes)
        time.sleep(0.05)
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(p.poll() is None for p in processes):
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.wait()
    # Of several found at once, one that a signal ended: the others died of its absence.
    died, code = min(found.items(), key=lambda item: item[1])
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    print(
        f"Process {died} of {len(processes)} ended {how}, and the others with it. The same command "
        "goes on from the latest checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    return 128 - code if code < 0 else code


def main(arguments: list[str]) -> None:
    with socket.socket() as probe:  # a port that is free
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = [start(i, address, arguments[1:]) for i in range(_PROCESSES.value)]

    def forward(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    try:
        sys.exit(wait(processes))
    finally:
        for process in processes:  # interrupted from the keyboard, say
            process.kill()


if __name__ == "__main__":
    app.run(main)
