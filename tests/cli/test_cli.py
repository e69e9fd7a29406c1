"""The `sqs` command on real files: outputs, exit codes and error messages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import sqs_jax
from sqs_jax.budget.distortion import HARMLESS_LOSS
from sqs_jax.checkpoints import write_safetensors
from sqs_jax.cli import main

ROOT = Path(__file__).resolve().parents[2]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.laplace(size=(16, 8, 3, 3)).astype(np.float32),
        "dense.weight": rng.laplace(size=(64, 100)).astype(ml_dtypes.bfloat16),
        "bias": rng.normal(size=64).astype(np.float32),
        "steps": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(weights(), path, metadata={"format": "pt"})
    return path


def run(*args):
    return main([str(arg) for arg in args])


def compress(source, target, *options):
    assert run("compress", source, "-o", target, "--target-ratio", 6, *options) == 0
    return target


def nbytes():
    return sum(array.nbytes for array in weights().values())


def test_compress_lands_and_decompress_gives_names_shapes_and_dtypes_back(checkpoint, tmp_path):
    path = compress(checkpoint, tmp_path / "model.sqs")
    assert 0.98 * nbytes() / 6 <= os.path.getsize(path) <= nbytes() / 6
    again = tmp_path / "again.safetensors"
    assert run("decompress", path, "-o", again) == 0
    with safetensors.safe_open(again, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {n: (x.shape, x.dtype) for n, x in tensors.items()} == {
        n: (x.shape, x.dtype) for n, x in weights().items()
    }
    for name in ("bias", "steps", "empty"):
        np.testing.assert_array_equal(tensors[name], weights()[name])
    loaded = sqs_jax.materialize(sqs_jax.load(path))
    np.testing.assert_array_equal(tensors["conv.weight"], loaded["conv.weight"])
    assert (tensors["conv.weight"] == 0).any()


def test_the_same_command_gives_the_same_bytes(checkpoint, tmp_path):
    first, second = (compress(checkpoint, tmp_path / name) for name in ("one.sqs", "two.sqs"))
    assert first.read_bytes() == second.read_bytes()


DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]


def test_every_dtype_is_lossless_where_the_budget_is_generous(tmp_path):
    rng = np.random.default_rng(0)
    tree = {name: (40 * rng.random((30, 20))).astype(np.dtype(name)) for name in DTYPES}
    tree["complex64"] = (tree["float32"] + 1j * tree["float32"]).astype(np.complex64)
    # Levels keep the value 0 and not its sign.
    tree["few levels"] = np.round(rng.normal(size=(80, 90))).astype(np.float32) + 0
    first, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_safetensors(first, tree)
    assert run("compress", first, "-o", tmp_path / "a.sqs", "--target-bytes", "1MB") == 0
    assert run("verify", tmp_path / "a.sqs", first, "--tolerance", 0) == 0
    assert run("decompress", tmp_path / "a.sqs", "-o", again) == 0
    assert again.read_bytes() == first.read_bytes()
    os.rename(again, first)
    assert run("compress", first, "-o", tmp_path / "b.sqs", "--target-bytes", "1MB") == 0
    assert (tmp_path / "b.sqs").read_bytes() == (tmp_path / "a.sqs").read_bytes()
    compressed = sqs_jax.load(tmp_path / "a.sqs")
    assert isinstance(compressed["few levels"], sqs_jax.CompressedLeaf)  # exact, and smaller


def test_npz_and_msgpack_go_in_too(tmp_path):
    arrays = {n: x for n, x in weights().items() if x.dtype != ml_dtypes.bfloat16}
    np.savez(tmp_path / "a.npz", **arrays)
    nested = {"params": arrays, "step": np.array(3)}
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.msgpack_serialize(nested))
    compress(tmp_path / "a.npz", tmp_path / "npz.sqs")
    compress(tmp_path / "a.msgpack", tmp_path / "msgpack.sqs")
    assert set(sqs_jax.load(tmp_path / "npz.sqs")) == set(arrays)
    assert set(sqs_jax.load(tmp_path / "msgpack.sqs")["params"]) == set(arrays)


def test_keep_sensitivity_and_target_bytes(checkpoint, tmp_path):
    sensitivity = tmp_path / "s.safetensors"
    ones = {n: np.ones_like(x) for n, x in weights().items() if x.ndim > 1 and x.size}
    safetensors.numpy.save_file({**ones, "conv.weight": 1e4 * ones["conv.weight"]}, sensitivity)
    path = tmp_path / "model.sqs"
    options = ["--sensitivity", sensitivity, "--keep", "dense.*", "--dense-dtype=float16"]
    assert run("compress", checkpoint, "-o", path, "--target-bytes", "16kB", *options) == 0
    assert 15_680 <= os.path.getsize(path) <= 16_000
    assert sqs_jax.read_metadata(path)["recipe"]["keep"] == ["dense.*"]
    compressed = sqs_jax.load(path)
    np.testing.assert_array_equal(compressed["dense.weight"], weights()["dense.weight"])
    half = weights()["bias"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(compressed["bias"], half)


def test_inspect_prints_every_tensor_and_json_is_json(checkpoint, tmp_path, capsys):
    path = compress(checkpoint, tmp_path / "model.sqs")
    capsys.readouterr()
    assert run("inspect", path) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*weights(), "total", "share", "format 1.0", "recipe"])
    assert run("inspect", path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["file_bytes"] == os.path.getsize(path) and len(report["leaves"]) == 5
    assert report["metadata"]["provenance"]["source"] == "model.safetensors"


def test_verify_measures_errors_and_fails_on_damage(checkpoint, tmp_path, capsys):
    path = compress(checkpoint, tmp_path / "model.sqs")
    assert run("verify", path) == 0
    assert run("verify", path, checkpoint) == 0
    capsys.readouterr()
    assert run("verify", path, checkpoint, "--json") == 0
    rows = {row["tensor"]: row for row in json.loads(capsys.readouterr().out)["errors"]}
    want = weights()["conv.weight"]
    got = sqs_jax.materialize(sqs_jax.load(path))["conv.weight"]
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert rows["conv.weight"]["relative_error"] == pytest.approx(error, rel=1e-5)
    assert rows["conv.weight"]["max_error"] == pytest.approx(np.abs(got - want).max(), rel=1e-5)
    assert rows["steps"]["note"] == "exact" and 0 < error < 0.7
    assert run("verify", path, checkpoint, "--tolerance", 0.5 * error) == 1
    assert run("verify", path, checkpoint, "--tolerance", 0.9) == 0
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({**weights(), "more": np.ones(3)}, other)
    assert run("verify", path, other) == 1
    assert "more: not in the file" in capsys.readouterr().out
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)
    assert run("verify", path) == 3
    assert "checksum" in capsys.readouterr().err


def test_diff_finds_what_changed(checkpoint, tmp_path, capsys):
    path = compress(checkpoint, tmp_path / "model.sqs")
    assert run("diff", path, path) == 0
    tree = sqs_jax.load(path)
    tree["bias"] = tree["bias"] * np.float32(1.5)
    tree.pop("steps")
    sqs_jax.save(tmp_path / "other.sqs", tree, metadata=sqs_jax.read_metadata(path))
    capsys.readouterr()
    assert run("diff", path, tmp_path / "other.sqs", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    rows = {row["tensor"]: row for row in report["differences"]}
    assert set(rows) == {"bias", "steps"} and not report["same"]
    assert rows["bias"]["relative_change"] == pytest.approx(0.5)
    assert rows["steps"]["note"] == "only in the first"


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_plot_draws_the_same_picture_twice(kind, checkpoint, tmp_path):
    path = compress(checkpoint, tmp_path / "model.sqs")
    pictures = [tmp_path / f"{name}.{kind}" for name in ("a", "b")]
    for picture in pictures:
        assert run("plot", path, "-o", picture) == 0
    data = pictures[0].read_bytes()
    assert data == pictures[1].read_bytes() and len(data) > 5000
    if kind == "html":
        assert b"<script" not in data and b"conv.weight" in data


def hugging_face(folder):
    """Write a repository of two shards with other files."""
    folder.mkdir()
    arrays = weights()
    shards = {"model-00001-of-00002.safetensors": ["conv.weight", "bias", "steps"]}
    shards["model-00002-of-00002.safetensors"] = ["dense.weight", "empty"]
    for shard, names in shards.items():
        part = {name: arrays[name] for name in names}
        safetensors.numpy.save_file(part, folder / shard, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": nbytes()},
        "weight_map": {name: shard for shard, names in shards.items() for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return folder


def test_a_hugging_face_folder_comes_back_as_it_was(tmp_path, capsys):
    source = hugging_face(tmp_path / "repo")
    packed = compress(source, tmp_path / "packed")
    assert {p.name for p in packed.iterdir()} == {"model.sqs", "config.json", "tokenizer"}
    for command in (["inspect", packed], ["verify", packed, source]):
        assert run(*command) == 0
    again = tmp_path / "again"
    assert run("decompress", packed, "-o", again) == 0
    names = {str(p.relative_to(source)) for p in source.rglob("*")}
    assert {str(p.relative_to(again)) for p in again.rglob("*")} == names
    index = (source / "model.safetensors.index.json").read_text()
    assert json.loads((again / "model.safetensors.index.json").read_text()) == json.loads(index)
    for shard in again.glob("*.safetensors"):
        with safetensors.safe_open(shard, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
        for name, array in safetensors.numpy.load_file(shard).items():
            assert (array.shape, array.dtype) == (weights()[name].shape, weights()[name].dtype)
    assert run("decompress", packed, "-o", again) == 3  # nothing is overwritten
    assert "again" in capsys.readouterr().err


INT = ["--dense-dtype", "int3"]
MISTAKES = {
    "no such file": (["inspect", "{tmp}/none.sqs"], "none.sqs"),
    "not an sqs file": (["inspect", "{model}"], "safetensors file"),
    "already compressed": (["compress", "{sqs}", "-o", "{tmp}/x", "--target-ratio", "2"], "sqs"),
    "a budget of nothing": (["compress", "{model}", "-o", "{tmp}/x", "--target-bytes", "0"], "0"),
    "too small": (["compress", "{model}", "-o", "{tmp}/x", "--target-bytes", "300"], "300"),
    "no tensor": (["compress", "{model}", "-o", "{tmp}/x", "--target-ratio=4", "--keep=z"], "'z'"),
    "no folder": (["compress", "{model}", "-o", "{tmp}/n/x", "--target-ratio=4"], "create it"),
    "a folder": (["decompress", "{sqs}", "-o", "{tmp}"], "folder"),
    "no picture": (["plot", "{sqs}", "-o", "{tmp}/x.pdf"], ".png"),
    "a folder without": (["inspect", "{tmp}"], "model.sqs"),
    "tolerance alone": (["verify", "{sqs}", "--tolerance", "1"], "original"),
    "dtype": (["compress", "{model}", "-o", "{tmp}/x", "--target-ratio=4", *INT], "int3"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_and_nothing_is_written(name, checkpoint, tmp_path, capsys):
    sqs_jax.save(tmp_path / "small.sqs", {"a": np.ones(3)})
    before = sorted(tmp_path.iterdir())
    args, says = MISTAKES[name]
    places = {"tmp": tmp_path, "model": checkpoint, "sqs": tmp_path / "small.sqs"}
    assert run(*(arg.format(**places) for arg in args)) == 3
    error = capsys.readouterr().err
    assert error.startswith("sqs: ") and says in error and "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["frobnicate"],
        ["compress", "x", "-o", "y"],
        ["compress", "x", "-o", "y", "--target-ratio", "2", "--target-bytes", "3"],
        ["compress", "x", "-o", "y", "--target-bytes", "many"],
    ],
)
def test_commands_that_make_no_sense_exit_with_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*args)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


def test_as_a_process(checkpoint, tmp_path):
    def process(*args, **kwargs):
        command = [sys.executable, "-W", "error", "-m", "sqs_jax.cli", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **kwargs)

    sqs = tmp_path / "model.sqs"
    completed = process("compress", checkpoint, "-o", sqs, "--target-ratio", 6)
    assert (
        completed.returncode == 0
        and "smaller than the weights" in completed.stdout
        and not completed.stderr
    )
    for command in ("compress", "decompress", "inspect", "verify", "diff", "plot"):
        shown = process(command, "--help")
        assert shown.returncode == 0 and "example:" in shown.stdout
    cut = subprocess.run(
        f"{sys.executable} -m sqs_jax.cli inspect {sqs} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "path" in cut.stdout and not cut.stderr


def test_the_input_and_devices_are_never_replaced(checkpoint, tmp_path, capsys):
    before = checkpoint.read_bytes()
    assert run("compress", checkpoint, "-o", checkpoint, "--target-ratio", 6) == 3
    assert checkpoint.read_bytes() == before and "is the input" in capsys.readouterr().err
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert run("compress", checkpoint, "-o", pipe, "--target-ratio", 6) == 3
    assert pipe.is_fifo() and "pipe" in capsys.readouterr().err
    assert run("inspect", pipe) == 3  # and does not wait for a writer
    assert "copy it to a file" in capsys.readouterr().err


def test_what_a_terminal_would_obey_is_escaped(tmp_path, capsys):
    path = tmp_path / "model.sqs"
    sqs_jax.save(path, {"\x1b[31mred\n": np.ones(3)}, metadata={"a": "\x1b]0;title\x07"})
    for command in (["inspect", path], ["verify", path]):
        assert run(*command) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\\x1b[31mred\\n" in out


def test_names_that_are_there_twice_are_refused_by_verify(tmp_path, capsys):
    path = tmp_path / "model.sqs"
    sqs_jax.save(path, {"a/b": np.ones(3), "a": {"b": np.zeros(3)}})
    assert run("verify", path) == 3
    assert "'a/b'" in capsys.readouterr().err


def test_compress_predicts_what_is_lost_and_names_a_ratio_that_loses_little(tmp_path, capsys):
    rng = np.random.default_rng(1)
    tensors = {f"{i}.weight": rng.normal(size=(64, 64)).astype(np.float32) for i in range(4)}
    path, target = tmp_path / "model.safetensors", tmp_path / "model.sqs"
    safetensors.numpy.save_file(tensors, path)

    def printed(ratio, *options):
        assert run("compress", path, "-o", target, "--target-ratio", ratio, *options) == 0
        return capsys.readouterr().out

    loss = json.loads(printed(20, "--json"))["predicted_loss"]
    weights = sqs_jax.materialize(sqs_jax.load(target))
    assert loss == pytest.approx(sqs_jax.predicted_loss(tensors, weights), rel=1e-6)
    assert loss > HARMLESS_LOSS
    warned = printed(20)
    assert f"predicted loss {loss:.3f}" in warned
    (milder,) = re.findall(r"warning: above 0.08 .*--target-ratio ([\d.]+) is below", warned)
    assert 5 < float(milder) < 20
    (below,) = re.findall(r"predicted loss ([\d.]+)$", printed(milder), re.MULTILINE)
    assert 0.85 * HARMLESS_LOSS < float(below) <= HARMLESS_LOSS
