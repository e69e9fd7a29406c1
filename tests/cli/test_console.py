"""Terminals, pipes and signals: the right exit code, and never a traceback."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import sqs_jax
from tests.cli.checkpoints import ROOT, process, run, weights, write


@pytest.fixture
def files(tmp_path):
    """Compress a checkpoint of many tensors, whose original has an additional tensor."""
    tensors = {f"слой.{'x' * 80}.{i}": weights(3) for i in range(300)}
    write(tmp_path / "m.safetensors", {**tensors, "w": weights(64, 64)})
    write(tmp_path / "n.safetensors", {**tensors, "w": weights(64, 64), "é": weights(3)})
    args = ["-o", tmp_path / "m.sqs", "--target-bytes", "40kB"]
    assert run("compress", tmp_path / "m.safetensors", *args) == 0
    return tmp_path


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_narrow_encoding_escapes_what_it_lacks(encoding, files):
    environment = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    for args, code in (
        (["inspect", files / "m.sqs"], 0),
        (["verify", files / "m.sqs", files / "n.safetensors"], 1),
        (["diff", files / "m.sqs", files / "m.sqs"], 0),
        (["inspect", files / "нет.sqs"], 3),
    ):
        done = process(*args, env=environment)
        assert done.returncode == code and b"Traceback" not in done.stdout + done.stderr
        (done.stdout + done.stderr).decode(encoding)


COMMANDS = [
    ("inspect m.sqs", 0),
    ("inspect m.sqs --json", 0),
    ("verify m.sqs n.safetensors", 1),
    ("verify m.sqs m.safetensors", 0),
    ("diff m.sqs m.sqs", 0),
    ("inspect none.sqs", 3),
    ("inspect", 2),
    ("--help", 0),
]


@pytest.mark.parametrize(
    ("streams", "command", "code"),
    [
        *((">&-", *command) for command in COMMANDS),
        *((">&- 2>&-", *command) for command in COMMANDS[2:3] + COMMANDS[5:7]),
        *(("<&- >&- 2>&-", *command) for command in COMMANDS[2:3]),
        *(("2>&-", *command) for command in COMMANDS[5:7]),
    ],
)
def test_closed_streams_leave_the_exit_code_as_it_is(streams, command, code, files):
    line = f"{sys.executable} -m sqs_jax.cli {command} {streams}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, cwd=files, env=environment, capture_output=True)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


@pytest.mark.parametrize("command", ["inspect m.sqs", "verify m.sqs n.safetensors"])
def test_a_reader_who_has_gone_changes_no_exit_code(command, files):
    line = f"({sys.executable} -m sqs_jax.cli {command}; echo code $? >&2) | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, cwd=files, env=environment, capture_output=True)
    expected = b"code 1\n" if command.startswith("verify") else b"code 0\n"
    assert done.stderr == expected and done.stdout


@pytest.mark.parametrize("command", ["inspect m.sqs", "compress --help"])
def test_a_full_device_is_an_error(command, files):
    line = f"{sys.executable} -m sqs_jax.cli {command} > /dev/full"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(line, shell=True, cwd=files, env=environment, capture_output=True)
    assert done.returncode == 3 and done.stderr.startswith(b"sqs: ")
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


# Undoes what nohup and shells without job control make their children ignore.
AS_IN_A_TERMINAL = """
import signal
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
"""
COMMAND = AS_IN_A_TERMINAL + "import sys; from sqs_jax.cli import main; sys.exit(main())"
WRITES = """
import os, signal, sys, time
from sqs_jax.artifact.atomic import check_writable, replacing, replacing_folder
from sqs_jax.cli.console import end_cleanly_on_signals
end_cleanly_on_signals()
with replacing_folder("folder") as folder, replacing("file") as file:
    with replacing(folder + "/inner") as inner:
        file.write(b"x" * 100_000)
        assert len(os.listdir(".")) == 2
        try:
            os.kill(os.getpid(), int(sys.argv[1]))
            time.sleep(5)
        except BaseException:
            print("caught")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_a_write_leaves_nothing(number, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", AS_IN_A_TERMINAL + WRITES, str(int(number))]
    done = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 128 + number and not os.listdir(tmp_path)
    assert done.stderr == f"sqs: stopped by {number.name}; no output was written\n"
    assert not done.stdout


def test_an_ignored_signal_stays_ignored(tmp_path):
    script = WRITES.replace("end_cleanly_on_signals()\n", "")
    script = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + script
    script = script.replace("time.sleep(5)", "end_cleanly_on_signals()")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(int(signal.SIGHUP))]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("folder", [False, True])
def test_a_process_that_is_stopped_while_it_writes_removes_its_files(number, folder, tmp_path):
    source = tmp_path / "hf" if folder else tmp_path
    tree = {f"l{i}": np.zeros((2048, 2048), np.float32) for i in range(8)}
    write(source / "model.safetensors", tree)
    packed = tmp_path / "packed.sqs"
    input_path = source if folder else source / "model.safetensors"
    assert run("compress", input_path, "-o", packed, "--target-ratio", 20) == 0
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / ("x" if folder else "x.safetensors")
    command = [sys.executable, "-c", COMMAND, "decompress", packed, "-o", output]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [*map(str, command)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    while child.poll() is None and not os.listdir(tmp_path / "out"):
        time.sleep(0.001)
    child.send_signal(number)
    _, error = child.communicate()
    assert child.returncode == 128 + number, error
    assert error == f"sqs: stopped by {number.name}; no output was written\n"
    assert not os.listdir(tmp_path / "out")


def test_messages_name_the_file_and_an_option(tmp_path, capsys):
    source = write(tmp_path / "m.safetensors", {"a": weights(64, 64), "b": weights(2000)})
    broken = weights(64, 64)
    broken[0, 0] = np.inf
    nan = write(tmp_path / "nan.safetensors", {"a": broken})
    ints = write(tmp_path / "ints.safetensors", {"q": np.arange(9999, dtype=np.int32) ** 3})
    other = write(tmp_path / "s.safetensors", {"z": weights(64, 64)})
    wrong = write(tmp_path / "w.safetensors", {"a": weights(3, 3)})
    for input_path, options, says in (
        (nan, ["--target-ratio=4"], ["1 of 4096", "--keep"]),
        (source, ["--target-bytes=3kB"], ["3,000 bytes", "--target-bytes", "--dense-dtype"]),
        (ints, ["--target-ratio=50"], ["int32", "--target-ratio 50"]),
        (source, ["--target-ratio=2", "--keep=z"], ["--keep 'z'", "a, b"]),
        (source, ["--target-ratio=2", "--only=z"], ["--only 'z'", "a, b"]),
        (source, ["--target-ratio=2", "--exclude=z"], ["--exclude 'z'", "a, b"]),
        (source, ["--target-ratio=2", "--exclude=.*"], ["leave no tensor"]),
        (source, ["--target-ratio=2", "--stacked=-1"], ["--stacked -1"]),
        (source, ["--target-ratio=2", "--dense-dtype=int8"], ["--dense-dtype is 'int8'"]),
        (source, ["--target-ratio=2", f"--sensitivity={other}"], ["--sensitivity", "has z"]),
        (source, ["--target-ratio=2", f"--sensitivity={wrong}"], ["--sensitivity has shape"]),
    ):
        assert run("compress", input_path, "-o", tmp_path / "x.sqs", *options) == 3
        error = capsys.readouterr().err
        assert str(input_path) in error and all(text in error for text in says), error
        assert not any(x in error for x in ("Rule(", "dense_dtype", "target_bytes", "target_ratio"))
    assert not (tmp_path / "x.sqs").exists()


@pytest.mark.parametrize(
    "options",
    [
        *(["--target-ratio", x] for x in ("0", "-3", "nan", "inf", "x")),
        ["--target-ratio", "2", "--only", "("],
        ["--target-ratio", "2", "--keep", "*"],
    ],
)
def test_options_that_make_no_sense_exit_with_2(options, tmp_path, capsys):
    source = write(tmp_path / "m.safetensors", {"a": weights(64, 64)})
    with pytest.raises(SystemExit) as stop:
        run("compress", source, "-o", tmp_path / "x.sqs", *options)
    assert stop.value.code == 2 and options[-2] in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("verify", tmp_path / "x.sqs", source, "--tolerance", "nan")


def test_optimizer_state_is_left_out_and_printed(tmp_path, capsys):
    import flax.serialization
    import optax

    params = {"dense": {"kernel": weights(64, 64), "bias": weights(64)}}
    state = {"step": 3, "params": params, "opt_state": optax.adamw(1e-3).init(params)}
    source = tmp_path / "state.msgpack"
    source.write_bytes(flax.serialization.to_bytes(state))
    target = tmp_path / "m.sqs"
    compress = ["compress", source, "-o", target, "--target-ratio", 3]
    for options in (["--only", "params"], ["--exclude", "opt_state", "--exclude", "step"]):
        assert run(*compress, *options) == 0
        assert "left out: 6 tensors: " in capsys.readouterr().out
        assert set(sqs_jax.load(target)) == {"params"}
        assert run("verify", target, source) == 0
        assert "6 tensors were left out" in capsys.readouterr().out
    assert run(*compress, "--only", "params/dense", "--exclude", ".*bias") == 0
    assert set(sqs_jax.load(target)["params"]["dense"]) == {"kernel"}
