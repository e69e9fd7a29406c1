"""Hugging Face folders: shards, index files and other files survive a round trip."""

import json
import os
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from sqs_jax.checkpoints import (
    CheckpointError,
    LazyArray,
    copy_other_files,
    open_checkpoint,
    write_safetensors_folder,
)
from tests.checkpoints.arrays import array, same, state

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def parts():
    return {
        SHARDS[0]: {"embed.weight": array("bfloat16"), "layers.0.weight": array("float32")},
        SHARDS[1]: {"layers.1.weight": array("float8_e4m3fn"), "steps": array("int64", ())},
    }


def make(folder, index=None):
    """Write a sharded folder; `index` is a function that edits the index file."""
    folder.mkdir(parents=True)
    weight_map = {}
    for shard, tensors in parts().items():
        safetensors.numpy.save_file(tensors, folder / shard, {"format": "pt", "part": shard[6:11]})
        weight_map |= dict.fromkeys(tensors, shard)
    whole = {"metadata": {"total_size": 92}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(whole if index is None else index(whole)))
    (folder / "config.json").write_text('{"hidden": 3}')
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return folder


def everything():
    return {name: x for tensors in parts().values() for name, x in tensors.items()}


def test_a_sharded_folder_goes_round(tmp_path):
    folder, out = make(tmp_path / "model"), tmp_path / "out"
    checkpoint = open_checkpoint(folder)
    assert checkpoint.kind == "huggingface" and same(checkpoint.tree, everything())
    assert checkpoint.nbytes == sum((folder / shard).stat().st_size for shard in SHARDS)
    layout = json.loads(json.dumps(checkpoint.metadata))
    nbytes, skipped = write_safetensors_folder(out, checkpoint.tree, layout, others=folder)
    assert skipped == sorted([*SHARDS, INDEX])
    assert nbytes == sum((out / shard).stat().st_size for shard in SHARDS)
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    assert {path.relative_to(out) for path in out.rglob("*")} == names
    again = open_checkpoint(out)
    assert same(again.tree, everything()) and again.metadata == checkpoint.metadata
    assert json.loads((out / INDEX).read_text()) == json.loads((folder / INDEX).read_text())
    assert (out / "tokenizer" / "vocab.txt").read_text() == "a\nb\n"
    for shard, tensors in parts().items():
        with safetensors.safe_open(out / shard, "np") as file:
            assert set(file.keys()) == set(tensors)
            assert file.metadata() == {"format": "pt", "part": shard[6:11]}


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_folder_of_one_file_goes_round(name, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    tensors = state("float16", "float32")
    safetensors.numpy.save_file(tensors, folder / name, {"format": "pt"})
    checkpoint = open_checkpoint(folder)
    assert same(checkpoint.tree, tensors) and checkpoint.metadata["index"] is None
    out.mkdir()  # empty, so that it may be filled
    write_safetensors_folder(out, checkpoint.tree, checkpoint.metadata)
    assert os.listdir(out) == [name] and open_checkpoint(out).metadata == checkpoint.metadata
    assert same(open_checkpoint(out).tree, tensors)


def test_the_cache_of_the_hub_is_links(tmp_path):
    make(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    checkpoint = open_checkpoint(snapshot)
    _, skipped = write_safetensors_folder(
        tmp_path / "out", checkpoint.tree, checkpoint.metadata, others=snapshot
    )
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert same(open_checkpoint(tmp_path / "out").tree, everything())
    assert (tmp_path / "out" / "config.json").read_text() == '{"hidden": 3}'
    assert "tokenizer/" in skipped and not (tmp_path / "out" / "tokenizer").exists()


def moved(whole, name, shard):
    return {**whole, "weight_map": {**whole["weight_map"], name: shard}}


@pytest.mark.parametrize(
    "shard",
    [
        *("../x.safetensors", "/x.safetensors", "a/x.safetensors", "a\\x.safetensors", ""),
        *("..", "x.bin", "C:x.safetensors", "x\0.safetensors", None, 3),
    ],
)
def test_a_shard_is_a_plain_name(shard, tmp_path):
    folder = make(tmp_path / "model", lambda whole: moved(whole, "steps", shard))
    with pytest.raises(CheckpointError, match=f"{INDEX}.*'steps' is in .*no plain name"):
        open_checkpoint(folder)
    layout = {"weight_map": {"a": shard}, "shards": {}, "index": None}
    with pytest.raises(CheckpointError, match="no plain name"):
        write_safetensors_folder(tmp_path / "out", {"a": np.ones(2)}, layout)
    assert sorted(os.listdir(tmp_path)) == ["model"]


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (lambda w: moved(w, "more", "model-3.safetensors"), "model-3.safetensors: missing, though"),
        (lambda w: moved(w, "more", SHARDS[0]), f"{SHARDS[0]}: no tensor 'more'"),
        (
            lambda w: moved(w, "steps", SHARDS[0]),
            f"{SHARDS[1]}: 'steps' is in this file and listed",
        ),
        (lambda w: [], "not a JSON object"),
        (lambda w: {"metadata": {}}, "no weight_map"),
        (lambda w: {"weight_map": []}, "no weight_map"),
        (lambda w: {"weight_map": {}}, "names no tensors"),
    ],
)
def test_an_index_that_is_not_true_is_refused(index, says, tmp_path):
    folder = make(tmp_path / "model", index)
    with pytest.raises(CheckpointError, match=says) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)


def test_an_index_that_is_no_json_is_refused(tmp_path):
    folder = make(tmp_path / "model")
    for text in ("", "{", '{"weight_map": {"a": "x", "a": "y"}}', "[" * 100_000):
        (folder / INDEX).write_text(text)
        with pytest.raises(CheckpointError, match=f"{INDEX}: no index of shards"):
            open_checkpoint(folder)


def test_a_tensor_in_two_shards_and_one_in_no_index(tmp_path):
    folder = make(tmp_path / "model")
    more = {**parts()[SHARDS[1]], "unlisted": array("float32")}
    safetensors.numpy.save_file(more, folder / SHARDS[1])
    checkpoint = open_checkpoint(folder)  # the tensor without an index entry is read too
    assert same(checkpoint.tree, {**everything(), "unlisted": array("float32")})
    assert checkpoint.metadata["weight_map"]["unlisted"] == SHARDS[1]
    safetensors.numpy.save_file({**parts()[SHARDS[0]], **more}, folder / SHARDS[0])
    with pytest.raises(CheckpointError, match="listed in"):
        open_checkpoint(folder)


def test_a_damaged_shard_is_named(tmp_path):
    folder = make(tmp_path / "model")
    os.truncate(folder / SHARDS[1], 40)
    with pytest.raises(CheckpointError, match=f"{SHARDS[1]}: .*copy it again"):
        open_checkpoint(folder)


def test_which_weights_are_meant_must_be_clear(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a", "b"):
        safetensors.numpy.save_file({name: np.ones(2)}, folder / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"give one file of: a.safetensors, b.safetensors"):
        open_checkpoint(folder)
    safetensors.numpy.save_file({"c": np.ones(2)}, folder / "model.safetensors")
    assert set(open_checkpoint(folder).tree) == {"c"}


def test_what_is_copied_and_what_is_not(tmp_path):
    source, target = make(tmp_path / "source"), tmp_path / "target"
    weights = ["pytorch_model.bin", "x.PT", "tf_model.h5", "flax_model.msgpack", "onnx/m.onnx"]
    weights += ["pytorch_model.bin.index.json", "model.safetensors.index.fp16.json", "m.sqs"]
    kept = ["README.md", ".gitattributes", "onnx/config.json", "index.json", "a/b/c.txt"]
    for name in [*weights, *kept, ".git/objects/1", ".cache/x", "notes.txt"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "loop").symlink_to(source)
    (source / "link.txt").symlink_to(source / "README.md")
    os.mkfifo(source / "pipe")
    target.mkdir()
    skipped = copy_other_files(source, target, exclude={"notes.txt"})
    assert sorted(skipped) == sorted(
        [*weights, *SHARDS, INDEX, ".git/", ".cache/", "loop/", "pipe"]
    )
    copied = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert copied == {*kept, "config.json", "tokenizer/vocab.txt", "link.txt"}
    assert (target / "link.txt").read_text() == "README.md"
    assert all((target / name).read_text() == name for name in kept)


def test_a_copy_into_itself_or_of_a_dead_link_is_refused(tmp_path):
    source = make(tmp_path / "source")
    checkpoint = open_checkpoint(source)
    with pytest.raises(CheckpointError, match="choose another place"):
        write_safetensors_folder(
            source / "out", checkpoint.tree, checkpoint.metadata, others=source
        )
    (source / "dead").symlink_to(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="dead: cannot be read"):
        write_safetensors_folder(
            tmp_path / "out", checkpoint.tree, checkpoint.metadata, others=source
        )
    assert os.listdir(tmp_path) == ["source"] and "out" not in os.listdir(source)


def layout(**changes):
    plain = {"index": INDEX, "index_metadata": {}, "weight_map": {"a": "a.safetensors"}}
    return {**plain, "shards": {"a.safetensors": {}}, **changes}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "None"),
        ({}, "no weight_map"),
        (layout(weight_map={}), "'a' is in the layout or given, but not both"),
        (layout(weight_map={"a": "a.safetensors", "b": "a.safetensors"}), "'b' is in the layout"),
        (layout(index="../model.safetensors.index.json"), "no name of an index"),
        (layout(index="config.json"), "no name of an index"),
        (layout(index=3), "no name of an index"),
        (layout(index_metadata=[]), "no objects"),
        (layout(shards=None), "no objects"),
        (layout(shards={"../a.safetensors": {}}), "no plain name"),
        (layout(shards={"a.safetensors": 3}), "no object"),
        (layout(shards={"a.safetensors": {"x": 3}}), "must be strings"),
    ],
)
def test_a_layout_is_not_trusted(given, says, tmp_path):
    with pytest.raises(CheckpointError, match=says):
        write_safetensors_folder(tmp_path / "out", {"a": np.ones(2)}, given)
    assert os.listdir(tmp_path) == []


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"

    def fail():
        raise CheckpointError("no more")

    where = {"a": "a.safetensors", "b": "b.safetensors"}
    tensors = {"a": np.ones(3), "b": LazyArray((3,), np.float32, fail)}
    with pytest.raises(CheckpointError, match="no more"):
        write_safetensors_folder(out, tensors, layout(weight_map=where))
    assert os.listdir(tmp_path) == []
    out.mkdir()
    (out / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match=r"not empty; give the name of a new folder.*out"):
        write_safetensors_folder(out, {"a": np.ones(3)}, layout())
    assert os.listdir(tmp_path) == ["out"] and os.listdir(out) == ["mine"]


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    size, folder = 1 << 20, tmp_path / "model"
    folder.mkdir()
    where = {f"t{i}": f"{i // 2}.safetensors" for i in range(8)}
    for shard in sorted(set(where.values())):
        part = {name: np.ones(size, np.uint8) for name in where if where[name] == shard}
        safetensors.numpy.save_file(part, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    (folder / "large.json").write_bytes(bytes(4 * size))
    del part
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(folder)
        write_safetensors_folder(
            tmp_path / "out", checkpoint.tree, checkpoint.metadata, others=folder
        )
        assert tracemalloc.get_traced_memory()[1] < 2.5 * size
    finally:
        tracemalloc.stop()


def test_subfolders_are_walked_once(tmp_path, monkeypatch):
    from sqs_jax.checkpoints import huggingface_folder

    folder = tmp_path / "model"
    (folder / "experts" / "one").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file({"a": np.ones(2)}, folder / "experts" / "one" / "x.safetensors")
    listed, names_in = [], huggingface_folder.names_in

    def counted(path):
        listed.append(os.path.relpath(path, folder))
        return names_in(path)

    monkeypatch.setattr(huggingface_folder, "names_in", counted)
    assert set(open_checkpoint(folder).tree) == {"experts/one/a"}
    assert listed == [".", "experts", "experts/one"]
