"""Checksums of a folder's files, so that not one changed bit goes unseen."""

import json
import zlib
from pathlib import Path

from experiments.atomic_files import write_json

NAME = "checksums.json"
_CHUNK = 1 << 22


def write_checksums(folder: Path) -> None:
    """Write size and CRC-32 of every file in a folder's subfolders into the folder, as NAME."""
    found = {
        str(path.relative_to(folder)): [path.stat().st_size, _crc(path)]
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    write_json(folder / NAME, {"files": found, "crc": _crc_of_table(found)})


def damage(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """Say what is wrong with a folder, the first file of it; None if all is as it was written.

    Args:
      folder: holds NAME.
      share: which of the shares of its files to read.
      shares: in how many the files are shared, among processes.
    """
    try:
        table = json.loads((folder / NAME).read_text())
        files = table["files"]
        if table["crc"] != _crc_of_table(files):
            return f"{NAME} is damaged"
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{NAME} is damaged"
    for name, (size, crc) in sorted(files.items())[share::shares]:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if _crc(path) != crc:
            return f"{name} has another checksum than when it was written"
    return None


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _crc_of_table(files: dict[str, list[int]]) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())
