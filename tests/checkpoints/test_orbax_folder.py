"""orbax: checkpoints of every layout are read leaf by leaf."""

import os
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sqs_jax.checkpoints import CheckpointError, flat_names, open_checkpoint
from tests.checkpoints.arrays import array, same


def tree(seed=0):
    return {
        "params": {"a.b": array("float32", seed=seed), "c/d": array("bfloat16", seed=seed)},
        "list": [array("int32", (5,), seed), {"x": array("bool", (), seed)}],
        "fp8": array("float8_e4m3fn", seed=seed),
        "complex": array("complex64", seed=seed),
        "none": None,
    }


def pytree(folder, item, **options):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(folder, item)
    return folder


def standard(folder, item):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, item)
    return folder


def managed(folder, steps, **items):
    with ocp.CheckpointManager(folder) as manager:
        for step in steps:
            composite = {name: ocp.args.StandardSave(make(step)) for name, make in items.items()}
            args = composite.pop("default", None) or ocp.args.Composite(**composite)
            manager.save(step, args=args)
    return folder


@pytest.mark.parametrize("save", [pytree, standard])
def test_what_orbax_saves_is_read(save, tmp_path):
    folder = save(tmp_path / "model", tree())
    checkpoint = open_checkpoint(folder)
    assert same(checkpoint.tree, tree())
    assert (checkpoint.kind, checkpoint.metadata) == ("orbax", {})
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert checkpoint.nbytes == sum(path.stat().st_size for path in files)


def test_other_layouts_and_kinds_of_nodes(tmp_path):
    item = {"a": {"x": array("float32")}, "b": (array("int32"), [array("float32")])}
    folder = pytree(tmp_path / "zarr", item, use_ocdbt=False)
    assert same(open_checkpoint(folder).tree, {**item, "b": list(item["b"])})
    folder = pytree(tmp_path / "zarr3", item, use_zarr3=True)
    assert same(open_checkpoint(folder).tree, {**item, "b": list(item["b"])})
    folder = pytree(tmp_path / "numbers", {"step": 7, "rate": 0.5, "e": {}})
    numbers = {"step": np.array(7), "rate": np.array(0.5), "e": {}}
    assert same(open_checkpoint(folder).tree, numbers)
    folder = pytree(tmp_path / "int", {3: {1: np.ones(2)}})
    assert same(open_checkpoint(folder).tree, {"3": {"1": np.ones(2)}})
    folder = pytree(tmp_path / "bare", np.ones(3))
    assert same(open_checkpoint(folder).tree, np.ones(3))


def test_arrays_of_many_devices_come_to_the_host(tmp_path):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.arange(12.0).reshape(4, 3)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("x")))
    leaf = open_checkpoint(standard(tmp_path / "m", {"x": sharded})).tree["x"]
    assert type(np.asarray(leaf)) is np.ndarray and (np.asarray(leaf) == np.asarray(x)).all()


def test_a_step_and_the_root_of_a_manager(tmp_path):
    root = managed(tmp_path / "run", (3, 20, 100), default=lambda step: {"w": np.full(3, step)})
    assert same(open_checkpoint(root).tree, {"w": np.full(3, 100)})
    assert same(open_checkpoint(root / "20").tree, {"w": np.full(3, 20)})
    assert same(open_checkpoint(root / "3" / "default").tree, {"w": np.full(3, 3)})
    shutil.copytree(root / "20", root / "200.orbax-checkpoint-tmp")
    (root / "300").mkdir()
    assert same(open_checkpoint(root).tree, {"w": np.full(3, 100)})


def test_several_trees_in_a_step(tmp_path):
    params = {"w": np.ones(3)}
    root = managed(tmp_path / "one", (1,), params=lambda _: params)
    assert same(open_checkpoint(root).tree, params)
    root = managed(tmp_path / "two", (1,), params=lambda _: params, state=lambda _: params)
    with pytest.raises(CheckpointError, match=r"2 trees.*give one of '.*params', '.*state'"):
        open_checkpoint(root)
    assert same(open_checkpoint(root / "1" / "params").tree, params)


def test_a_string_is_named(tmp_path):
    folder = pytree(tmp_path / "m", {"a": {"name": "text", "w": np.ones(2)}})
    with pytest.raises(CheckpointError, match="'a/name' is StringMetadata"):
        open_checkpoint(folder)


def test_damage_is_an_error_that_names_the_folder(tmp_path):
    # One array: where one of several cannot be opened, orbax abandons the others in their threads,
    # which then complain that its event loop is closed.
    x = array("float32", (30, 30))
    whole = standard(tmp_path / "m", {"x": x})
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    refused = set()
    for number, name in enumerate(files):
        folder = tmp_path / str(number) / "m"
        shutil.copytree(whole, folder)
        os.truncate(folder / name, (whole / name).stat().st_size // 2)
        try:
            leaves = flat_names(open_checkpoint(folder).tree)
            read = {key: np.asarray(leaf) for key, leaf in leaves.items()}
        except CheckpointError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
            refused.add(name.parts[0])
        else:
            assert read["x"].tobytes() == x.tobytes(), name
    assert refused >= {"_METADATA", "manifest.ocdbt", "d"}


def test_a_checkpoint_that_is_replaced_is_noticed(tmp_path):
    folder = standard(tmp_path / "m", {"w": np.ones(3)})
    leaf = open_checkpoint(folder).tree["w"]
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        np.asarray(leaf)
    standard(folder, {"w": np.zeros(3)})
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        np.asarray(leaf)


def test_without_orbax_the_extra_is_named(tmp_path, monkeypatch):
    folder = standard(tmp_path / "m", {"w": np.ones(3)})
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(CheckpointError, match=r"pip install 'sqs_jax\[orbax\]'"):
        open_checkpoint(folder)
