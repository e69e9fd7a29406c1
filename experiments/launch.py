"""Run a training as several processes of this machine.

    python -m experiments.launch --processes=2 --devices_per_process=2 -- \\
        --config=experiments/configs/digits.py --workdir=runs/digits

Flags after -- are those of experiments.train. The processes communicate over the loopback device.
SIGTERM is passed on to all processes. If a process dies, the other processes are killed, and the
same command resumes from the latest checkpoint. The exit code is that of the processes (75 after
SIGTERM), or that of the process that died.
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
# After a process has died, the other processes have this time to print their errors.
_GRACE_SECONDS = 5.0


def start(index: int, address: str, options: list[str]) -> subprocess.Popen[bytes]:
    """Start a process of the training.

    Args:
      index: Index of the process, from 0.
      address: Address host:port of process 0.
      options: Flags of experiments.train.
    """
    environment = dict(os.environ)
    if _DEVICES.value:
        environment["JAX_PLATFORMS"] = "cpu"
        environment["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={_DEVICES.value} "
            # The concurrent scheduler runs independent collectives in any order. Processes with
            # few threads then wait in different collectives, and never end.
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
    """Wait until all processes end or a process dies, and return the exit code."""
    while True:
        codes = [process.poll() for process in processes]
        failures = {i: code for i, code in enumerate(codes) if code and code != STOPPED}
        if failures:
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
    # Of several failures, a process that a signal killed (a negative code) caused the others.
    died, code = min(failures.items(), key=lambda item: item[1])
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    print(
        f"Process {died} of {len(processes)} ended {how}, and the others with it. The same command "
        "goes on from the latest checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    return 128 - code if code < 0 else code


def main(arguments: list[str]) -> None:
    with socket.socket() as probe:  # finds a free port
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
        for process in processes:  # after an interruption from the keyboard
            process.kill()


if __name__ == "__main__":
    app.run(main)
