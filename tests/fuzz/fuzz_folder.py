"""Fuzzing of the command with folders: names, links, sizes, indices, metadata.

    python tests/fuzz/fuzz_folder.py --seconds=300 --seed=0

Each case builds a folder of one of the usual layouts, damages it in a few random places, and runs
compress, verify and decompress on it. A finding is an exception, an exit code other than 0, 1 and
3, a temporary file that stays, something written outside of the output, more than 20 seconds; and,
where compress succeeded, a tensor or another file that neither comes back nor is named. Cases
follow from the seed: `--seed=N --cases=1` runs one again.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flax import serialization

import sqs_jax
from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.checkpoints import write_safetensors
from sqs_jax.cli import main

SECONDS = 20
TENSOR_NAMES = ["a.weight", "b/c", "x\ny", "ключ", "..", "../up", "a" * 300, "-o"]
TENSOR_NAMES += ["lm_head.weight"]
FILE_NAMES = [
    "ключ",
    "a b",
    "x\ny",
    "-o",
    "n" * 200,
    "c:d",
    "back\\slash",
    "._hidden",
    "UPPER",
    "..",
]
EXTENSIONS = [
    ".safetensors",
    ".bin",
    ".json",
    ".npz",
    ".msgpack",
    ".sqs",
    ".SAFETENSORS",
    ".txt",
    "",
]
FOLDERS = ["", "unet", "2_Dense", "checkpoint-5", ".git", "deep/er", "snapshots", "._x"]
VALUES = [
    None,
    0,
    -1,
    1 << 70,
    0.5,
    True,
    "",
    "x",
    [],
    {},
    "../x.safetensors",
    "/x",
    ["a"],
    {"a": 1},
]
VALUES += ["model.safetensors", {"a": "model.safetensors"}, "a" * 5000, "\ud800"]
INDEX = "model.safetensors.index.json"


class Case:
    """One folder and what happens to it.

    Attributes:
        rng: Draws everything.
        root: An empty folder; the source, the outputs and nothing else are made in it.
        source: The folder that is compressed.
    """

    def __init__(self, seed: int, root: Path) -> None:
        """Start from a seed."""
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.root = root
        self.source = root / "source"

    def array(self) -> np.ndarray:
        shape = self.rng.choice([(16, 16), (3,), (), (0, 4), (2, 8, 8), (24, 24)])
        dtype = self.rng.choice(["float32", "float32", "bfloat16", "float16", *DTYPES])
        return (4 * self.numbers.standard_normal(shape)).astype(DTYPES[dtype])

    def tensors(self, names=("a", "b")):
        more = self.rng.sample(TENSOR_NAMES, self.rng.choice([0, 0, 0, 1, 2]))
        return {name: self.array() for name in (*names, *more)}

    def shards(self, folder: Path, base: str = "model", index: bool = True) -> None:
        total = self.rng.choice([1, 2, 3])
        where = {}
        for i in range(total):
            name = f"{base}-{i + 1:05}-of-{total:05}.safetensors"
            part = self.tensors((f"t{i}.weight", f"t{i}.bias"))
            part = {n: x for n, x in part.items() if n not in where}
            write(folder / name, part)
            where |= dict.fromkeys(part, name)
        if index:
            text = {"metadata": {"total_size": 1}, "weight_map": where}
            (folder / f"{base}.safetensors.index.json").write_text(json.dumps(text))

    def build(self) -> None:
        """Make a folder of a usual layout."""
        self.source.mkdir()
        kind = self.rng.choice(
            ["single", "sharded", "no index", "pipeline", "encoder", "flax", "cache", "sidecar"]
        )
        (self.source / "config.json").write_text("{}")
        if kind in ("single", "encoder"):
            write(self.source / "model.safetensors", self.tensors())
        if kind == "encoder":
            write(self.source / "2_Dense" / "model.safetensors", self.tensors())
        elif kind in ("sharded", "no index"):
            self.shards(self.source, index=kind == "sharded")
        elif kind == "pipeline":
            (self.source / "model_index.json").write_text("{}")
            for name in ("unet", "vae"):
                self.shards(self.source / name, "diffusion_pytorch_model")
        elif kind == "flax":
            tree = {"params": {"dense": {"kernel": self.array(), "bias": self.array()}}}
            data = serialization.msgpack_serialize(tree)
            (self.source / "flax_model.msgpack").write_bytes(data)
        elif kind == "sidecar":
            write(self.source / "model.safetensors", self.tensors(("a",)))
            write(self.source / "head.safetensors", {"head": self.array()})
            where = {"a": "model.safetensors", "head": "head.safetensors"}
            (self.source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
        elif kind == "cache":
            snapshot = self.source / "snapshots" / "abc"
            (self.source / "blobs").mkdir()
            (self.source / "refs").mkdir()
            (self.source / "refs" / "main").write_text(self.rng.choice(["abc", "", "../..", "x"]))
            (self.source / "config.json").unlink()
            snapshot.mkdir(parents=True)
            write(self.source / "blobs" / "1", self.tensors())
            (snapshot / "model.safetensors").symlink_to("../../blobs/1")

    def damage(self) -> None:
        """Change one thing about the folder."""
        files = [p for p in self.source.rglob("*") if p.is_file() and not p.is_symlink()]
        path = self.rng.choice(files) if files else self.source / "x"
        change = self.rng.choice(
            [
                self.add,
                self.add,
                self.link,
                self.rename,
                self.resize,
                self.edit,
                self.edit,
                self.drop,
            ]
        )
        with contextlib.suppress(OSError):  # a name may be taken, or too long
            change(path)

    def place(self) -> Path:
        folder = self.source / self.rng.choice(FOLDERS)
        folder.mkdir(parents=True, exist_ok=True)
        base = self.rng.choice([*FILE_NAMES, "model", "model.fp16", "model-00009-of-00009"])
        return folder / (base + self.rng.choice(EXTENSIONS))

    def add(self, path: Path) -> None:
        where = self.place()
        kind = self.rng.choice(["tensors", "bytes", "copy", "folder", "pipe", "empty"])
        if kind == "tensors":
            write(where, self.tensors())
        elif kind == "copy":
            shutil.copy(path, where)
        elif kind == "folder":
            where.mkdir()
        elif kind == "pipe":
            os.mkfifo(where)
        else:
            where.write_bytes(b"" if kind == "empty" else self.rng.randbytes(50))

    def link(self, path: Path) -> None:
        target = self.rng.choice(
            [path, path.parent, self.source, Path("nowhere"), Path("/dev/null"), self.root.parent]
        )
        if target == self.root.parent:  # a folder outside with weights
            target = self.root / "outside"
            write(target / "model.safetensors", self.tensors())
        self.place().symlink_to(target)

    def rename(self, path: Path) -> None:
        where = self.place()
        if not where.exists():
            path.rename(where)

    def resize(self, path: Path) -> None:
        size = path.stat().st_size
        os.truncate(path, self.rng.choice([0, 1, 8, size // 2, max(size - 1, 0), size + 1]))

    def drop(self, path: Path) -> None:
        path.unlink()

    def edit(self, path: Path) -> None:
        """Change a value of a JSON file or of a header, or some bytes."""
        data = path.read_bytes()
        header = struct.unpack("<Q", data[:8])[0] if len(data) > 8 else 0
        safetensors = data[8:9] == b"{" and header < len(data)
        try:
            value = json.loads(data[8 : 8 + header] if safetensors else data)
            node, key = value, None
            while isinstance(node, dict | list) and node and self.rng.random() < 0.8:
                parent, key = (
                    node,
                    self.rng.choice(list(node) if isinstance(node, dict) else range(len(node))),
                )
                node = node[key]
            if key is not None:
                parent[key] = self.rng.choice(VALUES)
            text = json.dumps(value).encode()
        except (ValueError, UnicodeDecodeError):
            at = self.rng.randrange(len(data) or 1)
            path.write_bytes(data[:at] + self.rng.randbytes(3) + data[at + 3 :])
            return
        path.write_bytes(
            struct.pack("<Q", len(text)) + text + data[8 + header :] if safetensors else text
        )

    def run(self) -> str:
        """Compress, verify, decompress; raise AssertionError for a finding. Returns what it was."""
        self.build()
        for _ in range(self.rng.choice([0, 1, 1, 2, 3])):
            self.damage()
        before = listing(self.root)
        packed, again = self.root / "packed", self.root / "again"
        budget = self.rng.choice(["1MB", "1MB", "3kB", "500"])
        code, out = command("compress", self.source, "-o", packed, "--target-bytes", budget)
        assert code in (0, 1, 3), f"compress: exit {code}: {out}"
        if code == 3:
            assert out.startswith("sqs: ") and listing(self.root) == before, f"compress: {out}"
            return "refused"
        assert not [p for p in self.root.rglob("*.tmp")], "a temporary file is left"
        unchanged(before, self.root)
        verified, text = command("verify", packed, self.source)
        assert verified == code, f"verify: exit {verified} after {code}: {text}"
        code_back, text = command("decompress", packed, "-o", again)
        assert code_back == 0, f"decompress: exit {code_back}: {text}"
        self.compare(again, out)
        self.lie(packed)
        return "whole" if code == 0 else "named"

    def compare(self, again: Path, out: str) -> None:
        """Check that every tensor and every other file came back, or is named."""
        source = self.source
        if (source / "snapshots").is_dir() and (source / "blobs").is_dir():
            source = next((source / "snapshots").iterdir())
        lines = [line for line in out.splitlines() if line.startswith("not copied: ")]
        named = lines[0].removeprefix("not copied: ").split(", ") if lines else []
        for path in visible(source):
            relative = path.relative_to(source).as_posix()
            escaped = relative.encode("unicode_escape").decode()
            prefixes = [*("/".join(relative.split("/")[:i]) for i in range(1, 10)), escaped]
            if any(p in named or f"{p}/" in named for p in [*prefixes, relative]):
                continue
            if printable_is_named(relative, named):
                continue
            assert (again / relative).is_file() or is_index(path), f"lost: {relative!r}"
            if path.name.endswith(".safetensors"):
                assert header(path) == header(again / relative), f"differs: {relative!r}"
            elif path.suffix not in (".json", ".msgpack") and not is_index(path):
                assert path.read_bytes() == (again / relative).read_bytes()

    def lie(self, packed: Path) -> None:
        """Change the metadata of the file: nothing may be written outside of the output."""
        path = packed / "model.sqs"
        tree, metadata = sqs_jax.load(path), sqs_jax.read_metadata(path)
        node, key = metadata["provenance"], "metadata"
        while isinstance(node[key], dict) and node[key] and self.rng.random() < 0.7:
            node, key = node[key], self.rng.choice(list(node[key]))
        node[key] = self.rng.choice([v for v in VALUES if v != "\ud800"])
        sqs_jax.save(path, tree, metadata=metadata)
        before = listing(self.root)
        code, text = command("decompress", packed, "-o", self.root / "lies")
        assert code in (0, 3), f"decompress of a lie: exit {code}: {text}"
        shutil.rmtree(self.root / "lies", ignore_errors=True)
        assert listing(self.root) == before, "written outside of the output"


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, tensors, {"format": "pt"})


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    paths = (Path(f) / name for f, _, names in os.walk(folder) for name in names)
    return {str(p): (s.st_size, s.st_mtime_ns) for p in paths for s in [p.lstat()]}


def unchanged(before: dict[str, tuple[int, int]], root: Path) -> None:
    after = listing(root)
    assert before.items() <= after.items(), "the source was changed"
    new = [p for p in after.keys() - before.keys() if not p.startswith(str(root / "packed"))]
    assert not new, f"written outside of the output: {new}"


def visible(source: Path) -> list[Path]:
    """Files that a user sees as part of the model: no companions of macOS, no pipes."""
    paths = [Path(f) / name for f, _, names in os.walk(source) for name in names]
    files = [p for p in paths if p.is_file()]
    return [p for p in files if not (p.name.startswith("._") and is_companion(p))]


def is_companion(path: Path) -> bool:
    head = path.read_bytes()[:9]
    return head[:3] == b"\0\5\x16" or (head[8:9] != b"{" and path.suffix != ".json")


def is_index(path: Path) -> bool:
    return path.name.endswith(".json") and ".index." in path.name


def printable_is_named(relative: str, named: list[str]) -> bool:
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in relative)
    return any(shown == name or (shown.startswith(name) and name.endswith("/")) for name in named)


def header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Return dtypes and shapes of a safetensors file, read without the library's own reader."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + size])
    entries.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()}


def command(*args: object) -> tuple[int, str]:
    """Run the command; returns its exit code and all that it printed."""
    out = io.StringIO()
    start = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
    assert time.monotonic() - start < SECONDS, f"too slow: {args}"
    return code, out.getvalue()


def one(seed: int) -> str:
    """Run the case of a seed in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return Case(seed, Path(folder)).run()


def run() -> None:
    """Fuzz for the time that is given; stop at the first finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=1 << 60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results: collections.Counter[str] = collections.Counter()
    start, seed = time.monotonic(), options.seed
    while time.monotonic() - start < options.seconds and sum(results.values()) < options.cases:
        try:
            results[one(seed)] += 1
        except BaseException:
            print(f"finding at --seed={seed}", file=sys.stderr)
            raise
        seed += 1
    print(f"{sum(results.values())} folders, {dict(results)}, no finding")


if __name__ == "__main__":
    run()
