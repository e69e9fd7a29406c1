"""Coverage-guided fuzzing of what reads a stranger's file.

That is `load`, `inspect` and `read_attachments`.

    pip install atheris
    python tests/fuzz/fuzz_file.py -max_total_time=600 CORPUS
    python tests/fuzz/fuzz_file.py --forged -max_total_time=600 CORPUS

All arguments but `--forged` are libFuzzer's. CORPUS is a folder that grows (a different one for
each of the two); seeds are written to it if it is empty.

By default an input is a file. With `--forged` it is an index and the bytes of leaves: a right
header, lengths and checksums are put around them, so that these do not stop the fuzzer. The whole
file of a finding is written beside libFuzzer's own crash file, as finding-*.sqs.

A finding is any exception but SqsFileError, more than 2 s, or more than 1 GB. So that a file which
is large by right is none, the number of codes that a file may unfold to is lowered.
"""

import hashlib
import json
import lzma
import random
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

import atheris
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["sqs_jax.artifact"]):
    from sqs_jax import artifact
    from sqs_jax.artifact import container, reader, spec, tree
    from sqs_jax.artifact.coding import stream

SECONDS, BYTES = 2, 1 << 30
FILE = Path(tempfile.mkdtemp()) / "m.sqs"
FEW = [0, 1, -1, 2, 5, 64, 255, 256, 1024, 65_536, 1 << 20, 1 << 47, 1 << 70, 0.5, True, None, ""]
FEW += [[], {}, "d", "s", "c", ["r", 0], ["l"], ["t", "d"], ["k", "x", [], "int8", {}, "s"]]
FEW += ["bfloat16", "float64", "int4", [0], [3, 4], [1 << 40, 0], ["i", [1], "d"]]
FEW += ["integers", "attachment", "uint8", "bool", "int64", -(1 << 63), 1 << 63, {"minimum": 1}]
FEW += [["k", "integers", [4], "int16", {"minimum": -3}, "s", "s"], ["t", {"a": "s"}, {"b": "s"}]]
FEW += [
    ["k", "attachment", [4], "uint8", {}, "s"],
    {"a": ["k", "attachment", [4], "uint8", {}, "s"]},
]
KEYS = ["attachments", "minimum", "a/b", "..", "", "\0", "\ud800", "x" * 256, "tree", "é"]

reader.max_unfolded = lambda file_bytes: (1 << 18) + 64 * file_bytes
stream.CHUNK = 1 << 12


def read(data: bytes) -> None:
    """Read a file in every way; raise if that is a finding."""
    FILE.write_bytes(data)
    start = time.process_time()
    try:
        artifact.inspect(FILE)
        artifact.read_attachments(FILE)
        artifact.load(FILE)
    except artifact.SqsFileError:
        pass
    except BaseException:
        keep(data)
        raise
    if time.process_time() - start > SECONDS:
        keep(data)
        raise RuntimeError("too long")
    if 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > BASE + BYTES:
        keep(data)
        raise RuntimeError("too large")


def keep(data: bytes) -> None:
    """Write down the whole file of a finding."""
    Path(f"finding-{hashlib.sha256(data).hexdigest()[:16]}.sqs").write_bytes(data)


def join(text: bytes, data: bytes) -> bytes:
    """Return the input of `forged`."""
    return struct.pack("<H", len(text)) + text + data


def split(given: bytes) -> tuple[bytes, bytes]:
    """Undo `join`; any bytes will do."""
    end = 2 + int.from_bytes(given[:2], "little")
    return given[2:end], given[end:]


def forged(given: bytes) -> bytes:
    """Return a file with an index and data, cut into the leaves that the index claims."""
    text, data = split(given)
    leaves = []
    try:
        index = json.loads(text)
        tables = [
            iter(spec.read_arrays(index["arrays"])),
            iter(spec.read_symbols(index["symbols"])),
        ]
        for _, node in tree.leaf_nodes(index["tree"]):
            if node[0] != "r":
                size = spec.read_spec(node, *tables).nbytes
                if size > 1 << 16:
                    break
                leaves.append(data[:size].ljust(size, b"\0"))
                data = data[size:]
    except Exception:  # then the index is what is tested
        leaves = [data]
    lzma1 = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "preset": 0}
    packed = container.sealed(lzma.compress(text, lzma.FORMAT_ALONE, filters=[lzma1]))
    body = b"".join(map(container.sealed, leaves))
    return container.write_header(len(packed), len(body)) + packed + body


def mutate(given: bytes, most: int, seed: int) -> bytes:
    """Change the data, a value of the index, or the index's text."""
    text, data = split(given)
    rng = random.Random(seed)
    choice = rng.random()
    if choice < 0.5:
        return join(text, atheris.Mutate(data, max(len(data), 64)))[:most]
    if choice < 0.6:
        return join(atheris.Mutate(text, 4000), data)[:most]
    try:
        index = json.loads(text)
    except (ValueError, RecursionError):
        return join(atheris.Mutate(text, 4000), data)[:most]
    node, places = index, []
    while isinstance(node, dict | list) and node:
        places.append(
            (node, rng.choice(list(node) if isinstance(node, dict) else range(len(node))))
        )
        node = places[-1][0][places[-1][1]]
    if places:
        node, key = rng.choice(places[-2:])
        action = rng.random()
        if isinstance(node[key], int) and action < 0.5:
            node[key] += rng.choice([-1, 1, -node[key], node[key]])
        elif isinstance(node, list) and action < 0.7:
            node.insert(key, node[key] if action < 0.6 else rng.choice(FEW))
        elif isinstance(node, list) and action < 0.8:
            del node[key]
        elif isinstance(node, dict) and action < 0.7:
            node[rng.choice(KEYS)] = node.pop(key) if action < 0.6 else rng.choice(FEW)
        else:
            node[key] = rng.choice(FEW)
    changed = json.dumps(index, separators=(",", ":")).encode()
    return join(changed[:65_535], data)[:most]


def seeds() -> list[bytes]:
    """Return small files of every form of leaf."""
    rng = np.random.default_rng(0)

    def leaf(codes: np.ndarray, stack: tuple[int, ...] = ()) -> artifact.CompressedLeaf:
        values = int(codes.max(initial=1))
        book = np.ones((*stack, 1, values), np.float32)
        return artifact.CompressedLeaf(codes.astype(np.uint8 if values < 256 else np.uint16), book)

    quiet = rng.integers(0, 4, (3, 3, 24, 24)) * (rng.random(24) < 0.3)
    trees = [
        {},
        {"a": np.ones(3, np.float32), "b": [np.bool_(True), (np.zeros((0, 2), np.int8), None)]},
        {1: leaf(rng.integers(0, 4, (6, 5))), 2: leaf(rng.integers(0, 300, 30))},
        {"x": leaf(rng.binomial(3, 0.05, (2, 300)), (2,)), "y": leaf(rng.binomial(90, 0.3, 300))},
        leaf(np.where(rng.random(400) < 0.9, 0, rng.integers(0, 2_000, 400))),
        leaf(quiet),
        leaf(quiet.transpose(2, 3, 0, 1)),
        leaf(rng.integers(0, 5, (70, 80)) * (rng.random((70, 1)) < 0.5)),
        [np.full(2000, 0.1)] * 3,
        {"mask": np.tril(np.ones((1, 40, 40), bool)), "ids": np.arange(-200, 300)},
        [np.tile(np.array([-(2**63), 2**63 - 1]), 40), np.full(90, 7, np.uint16)],
        {"t": rng.integers(-8, 8, 300).astype("int4"), "u": np.arange(300, dtype=np.uint32)},
        np.ones(3, np.float32),
    ]
    found = []
    for number, one in enumerate(trees):
        attachments = {"é.json": b'{"a": [1, 2]}' * 5, "empty": b""} if number > 10 else None
        metadata = {"n": number} if number % 2 else None
        artifact.save(FILE, one, metadata=metadata, attachments=attachments)
        found.append(FILE.read_bytes())
    return found


def unforged(data: bytes) -> bytes:
    """Return the input from which `forged` makes this file."""
    FILE.write_bytes(data)
    with artifact.SqsFile(FILE) as file, open(FILE, "rb") as raw:
        streams = container.read_header(raw, len(data))
        packed = data[slice(*streams.index_span)]
        index, _ = container.read_index(packed, streams.data_span[1] - streams.data_span[0])
        listed = [*file.leaves, *file._attachments.values()]
        own = [leaf for leaf in listed if leaf.shared_with is None]
        parts = [data[leaf.offset : leaf.offset + leaf.spec.nbytes] for leaf in own]
    return join(json.dumps(index, separators=(",", ":")).encode(), b"".join(parts))


def main() -> None:
    """Fuzz until libFuzzer is told to stop."""
    arguments = [argument for argument in sys.argv if argument != "--forged"]
    forging = len(arguments) < len(sys.argv)
    for folder in [Path(argument) for argument in arguments[1:] if argument[0] != "-"][:1]:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            for number, data in enumerate(seeds()):
                (folder / f"seed-{number}").write_bytes(unforged(data) if forging else data)
    if forging:
        atheris.Setup(arguments, lambda data: read(forged(data)), custom_mutator=mutate)
    else:
        atheris.Setup(arguments, read)
    atheris.Fuzz()


BASE = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if __name__ == "__main__":
    main()
