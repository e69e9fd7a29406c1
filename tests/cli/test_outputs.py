"""Outputs: errors are raised before the work, and no input is ever replaced."""

import collections
import os
import shutil

import pytest

import sqs_jax
from tests.cli.checkpoints import run, weights, write, write_json


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in" / "model.safetensors", {"a": weights(64, 64)})


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "hf" / "model.safetensors", {"a": weights(64, 64)})
    write_json(tmp_path / "hf" / "config.json", {})
    return tmp_path / "hf"


@pytest.fixture
def no_work(monkeypatch):
    """Make compression fail, so that every error precedes the work."""

    def refuse(*args, **options):
        raise AssertionError("the work had begun")

    monkeypatch.setattr(sqs_jax, "compress_to_budget", refuse)


def compress(source, output, *options):
    return run("compress", source, "-o", output, "--target-ratio", 4, *options)


def dangling(folder):
    (folder / "merges.txt").symlink_to("nowhere")
    return folder


WRONG = {
    "a folder": lambda tmp: (tmp / "in/model.safetensors", tmp, "folder"),
    "no parent": lambda tmp: (tmp / "in/model.safetensors", tmp / "no/x.sqs", "create it"),
    "parent a file": lambda tmp: (
        tmp / "in/model.safetensors",
        tmp / "in/model.safetensors/x.sqs",
        "x.sqs",
    ),
    "a stream": lambda tmp: (tmp / "in/model.safetensors", "-", "-: a stream"),
    "stdout": lambda tmp: (tmp / "in/model.safetensors", "/dev/stdout", "/dev/stdout: a stream"),
    "a descriptor": lambda tmp: (tmp / "in/model.safetensors", "/dev/fd/1", "/dev/fd/1"),
    "a slash": lambda tmp: (tmp / "in/model.safetensors", f"{tmp}/x/", "name of a file"),
    "/proc": lambda tmp: (tmp / "in/model.safetensors", "/proc/x.sqs", "/proc/x.sqs"),
    "not empty": lambda tmp: (tmp / "hf", tmp / "in", "not empty"),
    "a file for a folder": lambda tmp: (
        tmp / "hf",
        tmp / "in/model.safetensors",
        "there is a file",
    ),
    "inside": lambda tmp: (tmp / "hf", tmp / "hf" / "out", "lies in the input"),
    "inside by a link": lambda tmp: (tmp / "hf", tmp / "link" / "out", "lies in the input"),
    "its own tensors": lambda tmp: (tmp / "hf", tmp / "hf/model.safetensors", "lies in the input"),
    "dangling link": lambda tmp: (dangling(tmp / "hf"), tmp / "x", "merges.txt: cannot be read"),
    "hard link": lambda tmp: (tmp / "in/model.safetensors", tmp / "same", "is the input"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_output_is_named_before_the_work(
    name, source, folder, tmp_path, capsys, no_work, monkeypatch
):
    (tmp_path / "link").symlink_to(folder)
    os.link(source, tmp_path / "same")
    input_path, output, says = WRONG[name](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert compress(input_path, output) == 3
    error = capsys.readouterr().err
    assert says in error and ".tmp" not in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_named_before_the_work(
    source, folder, tmp_path, capsys, no_work, monkeypatch
):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 100, 100))
    for input_path in (source, folder):
        assert compress(input_path, tmp_path / "x") == 3
        assert "100 are free" in capsys.readouterr().err


def test_a_blob_behind_a_link_is_an_input_too(folder, tmp_path, capsys):
    blob = tmp_path / "blob"
    os.rename(folder / "model.safetensors", blob)
    (folder / "model.safetensors").symlink_to(blob)
    before = blob.read_bytes()
    packed = tmp_path / "packed"
    assert compress(folder, packed) == 0
    (tmp_path / "adapter").mkdir()
    os.rename(packed / "model.sqs", tmp_path / "weights.safetensors")
    (packed / "model.sqs").symlink_to(tmp_path / "weights.safetensors")
    assert run("decompress", packed, "-o", tmp_path / "weights.safetensors") == 3
    assert "is the input" in capsys.readouterr().err
    assert blob.read_bytes() == before


@pytest.mark.parametrize("output", ["model.sqs", "again.safetensors", "out", "."])
def test_decompress_writes_nothing_into_its_input(output, folder, tmp_path, capsys):
    packed = tmp_path / "packed"
    assert compress(folder, packed) == 0
    before = {path: path.read_bytes() for path in packed.iterdir()}
    assert run("decompress", packed, "-o", packed / output) == 3
    assert {path: path.read_bytes() for path in packed.iterdir()} == before
    assert "packed" in capsys.readouterr().err


def test_the_sensitivity_and_the_file_that_is_drawn_are_inputs(source, tmp_path, capsys):
    sensitivity = write(tmp_path / "s.safetensors", {"a": abs(weights(64, 64))})
    assert compress(source, sensitivity, "--sensitivity", sensitivity) == 3
    assert compress(source, tmp_path / "m.sqs") == 0
    (tmp_path / "m.svg").symlink_to(tmp_path / "m.sqs")
    assert run("plot", tmp_path / "m.sqs", "-o", tmp_path / "m.svg") == 3
    assert capsys.readouterr().err.count("is the input") == 2
    assert sqs_jax.load(tmp_path / "m.sqs")


def test_a_dangling_output_link_is_followed(source, tmp_path):
    (tmp_path / "link.sqs").symlink_to(tmp_path / "real.sqs")
    assert compress(source, tmp_path / "link.sqs") == 0
    assert (tmp_path / "link.sqs").is_symlink() and sqs_jax.load(tmp_path / "real.sqs")


def test_streams_are_refused_by_any_name(source, tmp_path, capsys):
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "again").symlink_to("link")
    for name in ("//dev/stdout", "/dev/./stdout", "/dev/../dev/fd/1", tmp_path / "again"):
        assert compress(source, name) == 3
        assert f"{name}: a stream" in capsys.readouterr().err


def test_no_message_names_a_temporary_path(folder, tmp_path, capsys):
    (folder / "model.sqs").mkdir()
    assert compress(folder, tmp_path / "x") == 3
    assert "rename it" in capsys.readouterr().err
    (folder / "model.sqs").rmdir()
    packed = tmp_path / "packed"
    assert compress(folder, packed) == 0
    tree, metadata = sqs_jax.load(packed / "model.sqs"), sqs_jax.read_metadata(packed / "model.sqs")
    long = "n" * 300 + ".safetensors"
    layout = metadata["provenance"]["metadata"]
    layout |= {"weight_map": {"a": long}, "shards": {long: {"format": "pt"}}}
    sqs_jax.save(packed / "model.sqs", tree, metadata=metadata)
    assert run("decompress", packed, "-o", tmp_path / "again") == 3
    error = capsys.readouterr().err
    assert ".tmp" not in error and f"{tmp_path}/again/nnn" in error
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("options", [["--target-ratio", "1e-308"], ["--target-bytes", "9" * 400]])
def test_numbers_beyond_all_files_are_refused(options, source, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run("compress", source, "-o", tmp_path / "x", *options)
    assert stop.value.code == 2


def test_a_sensitivity_may_cover_what_is_left_out(tmp_path, capsys):
    source = write(tmp_path / "m.safetensors", {"x": weights(64, 64), "y": weights(64, 64)})
    sensitivity = write(tmp_path / "s.safetensors", {n: abs(weights(64, 64)) for n in "xy"})
    options = ["--sensitivity", sensitivity, "--only", "x"]
    assert compress(source, tmp_path / "m.sqs", *options) == 0
    assert set(sqs_jax.load(tmp_path / "m.sqs")) == {"x"}
