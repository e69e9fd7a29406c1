"""Folders come back complete, or the output names the omitted files with exit code 1."""

import json
import os

import flax.serialization
import numpy as np
import pytest

import sqs_jax
from tests.cli.checkpoints import (
    comes_back,
    run,
    shapes,
    tensors_under,
    weights,
    write,
    write_json,
)

INDEX = "model.safetensors.index.json"


def sentence_encoder(folder):
    write(folder / "model.safetensors", {"embeddings.weight": weights(64, 32)})
    write(folder / "2_Dense" / "model.safetensors", {"linear.weight": weights(32, 32)})
    write_json(folder / "2_Dense" / "config.json", {"in_features": 32})
    write_json(folder / "modules.json", [{"path": ""}, {"path": "2_Dense"}])


def pipeline(folder):
    write_json(folder / "model_index.json", {"_class_name": "Pipeline"})
    write(folder / "vae" / "diffusion_pytorch_model.safetensors", {"a": weights(32, 32)})
    for i, name in enumerate(("a", "b")):
        shard = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        write(folder / "unet" / shard, {name: weights(32, 32)})
    where = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}
    where["b"] = "diffusion_pytorch_model-00002-of-00002.safetensors"
    name = "diffusion_pytorch_model.safetensors.index.json"
    write_json(folder / "unet" / name, {"metadata": {"total_size": 8192}, "weight_map": where})


def deep(folder):
    write_json(folder / "config.json", {})
    write(folder / "experts" / "one" / "model.safetensors", {"a": weights(32, 32)})
    write(folder / "experts" / "two" / "model.safetensors", {"a": weights(32, 32, seed=1)})


def sidecar(folder):
    write(folder / "model.safetensors", {"a": weights(32, 32)})
    write(folder / "extra_head.safetensors", {"head": weights(32, 16)})
    where = {"a": "model.safetensors", "head": "extra_head.safetensors"}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": where})


def omitted_shard(folder):
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, name in enumerate(names):
        write(folder / name, {f"t{i}": weights(32, 32, seed=i)})
    where = {"t0": names[0], "t2": names[2]}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": where})


def no_index(folder):
    for i in (1, 2, 3):
        write(folder / f"model-0000{i}-of-00003.safetensors", {f"t{i}": weights(32, 32)})


def companions_of_macos(folder):
    sidecar(folder)
    for name in ("._model.safetensors", f"._{INDEX}", "._config.json", "._extra_head.safetensors"):
        (folder / name).write_bytes(b"\0\5\26\7")


FOLDERS = {
    f.__name__: f
    for f in (
        *(sentence_encoder, pipeline, deep, sidecar, omitted_shard, no_index),
        companions_of_macos,
    )
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_tensor_of_a_folder_comes_back_in_its_file(name, tmp_path, capsys):
    source = tmp_path / "source"
    FOLDERS[name](source)
    again = comes_back(source, tmp_path)
    assert shapes(again) == shapes(tensors_under(source))
    assert "not copied" not in capsys.readouterr().out
    for index in source.rglob("*.index.json"):
        if not index.name.startswith("._"):
            back = json.loads((tmp_path / "again" / index.relative_to(source)).read_text())
            original = json.loads(index.read_text())
            assert back["metadata"] == original["metadata"]
            assert back["weight_map"].items() >= original["weight_map"].items()
    for other in source.rglob("*.json"):
        if not other.name.startswith("._"):
            assert (tmp_path / "again" / other.relative_to(source)).is_file()
    assert run("verify", tmp_path / "packed", source) == 0


@pytest.mark.parametrize(
    "lost",
    [
        *("pytorch_model.bin", "onnx/model.onnx", "tf_model.h5", "flax_model.msgpack"),
        *("checkpoint-500/model.safetensors", "model.fp16.safetensors", "old.sqs"),
        "consolidated.safetensors",
    ],
)
def test_tensors_that_are_left_out_are_named_with_exit_code_1(lost, tmp_path, capsys):
    source = tmp_path / "source"
    write(source / "model.safetensors", {"a": weights(32, 32)})
    if lost.endswith(".safetensors"):
        write(source / lost, {"a": weights(32, 32)})
    else:
        (source / lost).parent.mkdir(exist_ok=True)
        (source / lost).write_bytes(b"weights of another kind")
    named = "checkpoint-500/" if "checkpoint" in lost else lost
    comes_back(source, tmp_path, code=1)
    out = capsys.readouterr().out
    assert f"not copied: {named}\n" in out and "--exclude" in out
    assert run("verify", tmp_path / "packed", source) == 1
    assert f"{named}: not in the file" in capsys.readouterr().out
    # With --exclude for the omitted file the exit code is 0.
    other = tmp_path / "other"
    options = ["--target-ratio", 2, "--exclude", named.rstrip("/")]
    assert run("compress", source, "-o", other, *options) == 0
    assert f"left out: {named}" in capsys.readouterr().out
    assert run("verify", other, source) == 0


def test_a_linked_folder_with_weights_is_named(tmp_path, capsys):
    source = tmp_path / "source"
    write(source / "model.safetensors", {"a": weights(32, 32)})
    write(tmp_path / "elsewhere" / "model.safetensors", {"b": weights(32, 32)})
    (source / "adapter").symlink_to(tmp_path / "elsewhere")
    comes_back(source, tmp_path, code=1)
    assert "not copied: adapter/" in capsys.readouterr().out


def test_what_holds_no_tensors_is_no_loss(tmp_path, capsys):
    source = tmp_path / "source"
    write(source / "model.safetensors", {"a": weights(32, 32)})
    (source / "training_args.bin").write_bytes(b"settings")
    (source / ".git").mkdir()
    comes_back(source, tmp_path)
    assert (tmp_path / "again" / "training_args.bin").read_bytes() == b"settings"
    assert "not copied: .git/" in capsys.readouterr().out


def hub(root, name, *revisions, main=None):
    """Write the cache of huggingface_hub for a repository; return the folder."""
    folder = root / name
    for revision in revisions:
        blob = write(folder / "blobs" / revision, {revision: weights(32, 32)})
        (folder / "snapshots" / revision).mkdir(parents=True)
        link = folder / "snapshots" / revision / "model.safetensors"
        link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs").mkdir(parents=True)
    if main:
        (folder / "refs" / "main").write_text(main)
    return folder


def test_the_cache_of_the_hub_stands_for_its_snapshot(tmp_path, capsys):
    repository = hub(tmp_path / "hub", "models--org--one", "aaa")
    assert set(comes_back(repository, tmp_path)["model.safetensors"]) == {"aaa"}
    two = hub(tmp_path / "hub", "models--org--two", "aaa", "bbb", main="bbb")
    target = tmp_path / "two"
    assert run("compress", two, "-o", target, "--target-ratio", 2) == 0
    assert set(sqs_jax.load(target / "model.sqs")) == {"bbb"}
    capsys.readouterr()
    three = hub(tmp_path / "other", "models--org--three", "aaa", "bbb", main="gone")
    assert run("compress", three, "-o", tmp_path / "x", "--target-ratio", 2) == 3
    assert "snapshots/aaa" in capsys.readouterr().err
    assert run("compress", tmp_path / "hub", "-o", tmp_path / "x", "--target-ratio", 2) == 3
    assert "give one of" in capsys.readouterr().err
    assert run("compress", tmp_path / "other", "-o", tmp_path / "x", "--target-ratio", 2) == 3
    empty = hub(tmp_path / "hub2", "models--org--empty")
    (empty / "snapshots").mkdir()
    assert run("compress", empty, "-o", tmp_path / "x", "--target-ratio", 2) == 3
    assert "download the model again" in capsys.readouterr().err


def test_a_flax_folder_comes_back_as_msgpack(tmp_path, capsys):
    source = tmp_path / "source"
    write_json(source / "config.json", {"model_type": "bert"})
    tree = {"params": {"dense": {"kernel": weights(32, 32), "bias": weights(32)}}}
    (source / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    comes_back(source, tmp_path)
    data = (tmp_path / "again" / "flax_model.msgpack").read_bytes()
    back = flax.serialization.msgpack_restore(data)
    np.testing.assert_array_equal(back["params"]["dense"]["bias"], tree["params"]["dense"]["bias"])
    assert back["params"]["dense"]["kernel"].shape == (32, 32)
    assert (tmp_path / "again" / "config.json").is_file()
    assert run("verify", tmp_path / "packed", source) == 0
    (source / "pytorch_model.bin").write_bytes(b"x")
    target = tmp_path / "second"
    assert run("compress", source, "-o", target, "--target-ratio", 2) == 1


@pytest.mark.parametrize(
    ("name", "config", "code"),
    [
        ("lm_head.weight", {}, 0),
        ("lm_head.weight", {"tie_word_embeddings": True}, 0),
        ("model.embed_tokens.weight", {"text_config": {"tie_word_embeddings": True}}, 0),
        ("lm_head.weight", {"tie_word_embeddings": False}, 3),
        ("layers.0.weight", {"tie_word_embeddings": True}, 3),
    ],
)
def test_a_tied_tensor_is_in_the_index_alone(name, config, code, tmp_path, capsys):
    source = tmp_path / "source"
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, shard in enumerate(shards):
        write(source / shard, {f"t{i}": weights(32, 32)})
    where = {"t0": shards[0], "t1": shards[1], name: shards[1]}
    write_json(source / INDEX, {"metadata": {}, "weight_map": where})
    write_json(source / "config.json", config)
    if code:
        assert run("compress", source, "-o", tmp_path / "x", "--target-ratio", 2) == code
        assert name in capsys.readouterr().err
        return
    comes_back(source, tmp_path)
    assert json.loads((tmp_path / "again" / INDEX).read_text())["weight_map"] == where


def test_folders_that_cannot_be_meant_have_one_remedy(tmp_path, capsys):
    def error(source):
        assert run("compress", source, "-o", tmp_path / "x", "--target-ratio", 2) == 3
        return capsys.readouterr().err

    gap = tmp_path / "gap"
    for i in (1, 3):
        write(gap / f"model-0000{i}-of-00003.safetensors", {f"t{i}": weights(32, 32)})
    assert "model-00002-of-00003.safetensors is missing" in error(gap)
    parts = tmp_path / "parts"
    for name in ("one", "two"):
        write(parts / name / "model.safetensors", {"a": weights(32, 32)})
    assert f"give one of: {parts}/one, {parts}/two" in error(parts)
    dead = tmp_path / "dead"
    dead.mkdir()
    (dead / "model.safetensors").symlink_to(tmp_path / "nothing")
    assert "a link to nothing" in error(dead)


def test_tensors_can_be_left_out_of_a_folder(tmp_path, capsys):
    source = tmp_path / "source"
    FOLDERS["pipeline"](source)
    again = comes_back(source, tmp_path, "--exclude", "vae")
    assert "left out: 1 tensor: vae/a" in capsys.readouterr().out
    assert set(again["unet/diffusion_pytorch_model-00001-of-00002.safetensors"]) == {"a"}
    assert run("verify", tmp_path / "packed", source) == 0
    assert "1 tensor was left out" in capsys.readouterr().out
    write(source / "new" / "model.safetensors", {"b": weights(32, 32)})
    assert run("verify", tmp_path / "packed", source) == 1
    assert "problem: new/b: not in the file" in capsys.readouterr().out


def test_other_trees_of_an_orbax_folder_are_named(tmp_path, capsys):
    import orbax.checkpoint as ocp

    save = ocp.args.StandardSave
    with ocp.CheckpointManager(tmp_path / "run", item_names=("default", "ema")) as manager:
        for step in (1, 2):
            items = {"default": save({"a": weights(32, 32)}), "ema": save({"e": weights(32, 32)})}
            manager.save(step, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    np.savez(tmp_path / "run" / "extra.npz", x=weights(3))
    target = tmp_path / "m.sqs"
    assert run("compress", tmp_path / "run", "-o", target, "--target-ratio", 2) == 1
    out = capsys.readouterr().out
    assert "not copied: extra.npz, 1/default/, 1/ema/, 2/ema/" in out
    assert run("verify", target, tmp_path / "run") == 1
    assert "2/ema/: not in the file" in capsys.readouterr().out
    options = ["--exclude", "1", "--exclude", "2/ema", "--exclude", "extra.npz"]
    assert run("compress", tmp_path / "run", "-o", target, "--target-ratio", 2, *options) == 0
    assert run("verify", target, tmp_path / "run") == 0


def test_real_files_with_the_names_of_companions_come_back(tmp_path, capsys):
    source = tmp_path / "source"
    write(source / "model.safetensors", {"a": weights(32, 32)})
    write(source / "._sub" / "model.safetensors", {"b": weights(32, 32)})
    (source / "._notes.txt").write_text("notes")
    again = comes_back(source, tmp_path)
    assert (tmp_path / "again" / "._notes.txt").read_text() == "notes"
    assert set(again) == {"model.safetensors", "._sub/model.safetensors"}
    write(source / "._real.safetensors", {"c": weights(32, 32)})
    assert run("compress", source, "-o", tmp_path / "x", "--target-ratio", 2) == 1
    assert "not copied: ._real.safetensors" in capsys.readouterr().out


def test_links_to_what_is_taken_are_no_loss(tmp_path):
    source = tmp_path / "source"
    write(source / "model.safetensors", {"a": weights(32, 32)})
    (source / "alias.safetensors").symlink_to("model.safetensors")
    (source / "self").symlink_to(source)
    comes_back(source, tmp_path)
    assert run("verify", tmp_path / "packed", source) == 0


def test_a_file_cannot_make_verify_run_its_patterns(tmp_path):
    name = "x" * 40
    metadata = {"recipe": {"exclude": ["(x+x+)+y"], "left_out": [3, None]}}
    sqs_jax.save(tmp_path / "m.sqs", {name: weights(4, 4)}, metadata=metadata)
    write(tmp_path / "m.safetensors", {name: weights(4, 4)})
    assert run("verify", tmp_path / "m.sqs", tmp_path / "m.safetensors") == 0
    assert run("verify", tmp_path / "m.sqs", "") == 3  # an unset variable of a shell


def test_one_of_two_files_that_no_index_lists_can_be_excluded(tmp_path, capsys):
    source = tmp_path / "source"
    write_json(source / "config.json", {})
    for name in ("a", "b"):
        write(source / "part" / f"{name}.safetensors", {name: weights(32, 32)})
    assert run("compress", source, "-o", tmp_path / "x", "--target-ratio", 2) == 3
    assert "(--exclude)" in capsys.readouterr().err
    again = comes_back(source, tmp_path, "--exclude", r"part/b\.safetensors")
    assert set(again) == {"part/a.safetensors"}
    assert "left out: part/b.safetensors\n" in capsys.readouterr().out
    assert run("verify", tmp_path / "packed", source) == 0
    options = ["--target-ratio", 2, "--exclude", "part/[ab]"]
    assert run("compress", source, "-o", tmp_path / "x", *options) == 3


def test_one_of_two_indices_can_be_excluded(tmp_path, capsys):
    source = tmp_path / "source"
    for name in ("a", "b"):
        shard = f"{name}-00001-of-00001.safetensors"
        write(source / shard, {name: weights(32, 32)})
        write_json(source / f"{name}.safetensors.index.json", {"weight_map": {name: shard}})
    assert run("compress", source, "-o", tmp_path / "x", "--target-ratio", 2) == 3
    assert "leave out (--exclude) all but one of: a.safetensors.index" in capsys.readouterr().err
    again = comes_back(source, tmp_path, "--exclude", "b.*")
    assert set(again) == {"a-00001-of-00001.safetensors"}
    assert run("verify", tmp_path / "packed", source) == 0
    # an index alone may be named, but its shards are missed
    options = ["--target-ratio", 2, "--exclude", r"b\.safetensors\.index\.json"]
    capsys.readouterr()
    assert run("compress", source, "-o", tmp_path / "y", *options) == 1
    assert "not copied: b-00001-of-00001.safetensors" in capsys.readouterr().out


def test_a_pattern_for_tensors_leaves_the_index_that_is_used(tmp_path, capsys):
    source, shard = tmp_path / "source", "model-00001-of-00001.safetensors"
    write(source / shard, {"model.x": weights(2), "c": weights(32, 32)})
    write_json(source / INDEX, {"weight_map": {"model.x": shard, "c": shard}})
    assert set(comes_back(source, tmp_path, "--exclude", "model")[shard]) == {"c"}
    assert INDEX not in capsys.readouterr().out
    assert (tmp_path / "again" / INDEX).is_file()
    assert run("verify", tmp_path / "packed", source) == 0


@pytest.mark.parametrize("options", [("--exclude", "unet/a"), ("--only", "unet/b")])
def test_the_total_size_of_an_index_is_that_of_the_tensors_that_come_back(options, tmp_path):
    source = tmp_path / "source"
    FOLDERS["pipeline"](source)
    comes_back(source, tmp_path, *options)
    (index,) = (tmp_path / "again").rglob("*.index.json")
    assert json.loads(index.read_text())["metadata"] == {"total_size": 32 * 32 * 4}


def test_one_tensor_is_not_called_tensors(tmp_path, capsys):
    write(tmp_path / "m.safetensors", {"a": weights(32, 32)})
    for name, ratio in (("a.sqs", 2), ("b.sqs", 3)):
        source = tmp_path / "m.safetensors"
        assert run("compress", source, "-o", tmp_path / name, "--target-ratio", ratio) == 0
    assert run("verify", tmp_path / "a.sqs") == 0
    assert run("diff", tmp_path / "a.sqs", tmp_path / "b.sqs") == 1
    assert run("decompress", tmp_path / "a.sqs", "-o", tmp_path / "again.npz") == 0
    write(tmp_path / "empty.safetensors", {"a": weights(0)})
    source = tmp_path / "empty.safetensors"
    assert run("compress", source, "-o", tmp_path / "c.sqs", "--target-ratio", 2) == 3
    shown = "".join(capsys.readouterr())
    assert shown.count("1 tensor") == 4 and "1 tensors" not in shown
    assert "1 tensor differs" in shown
