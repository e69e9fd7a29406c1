"""Checksums of the files of a folder, which reveal every changed bit."""

import json
import zlib
from pathlib import Path

from experiments.atomic_files import write_json

NAME = "checksums.json"
_CHUNK = 1 << 22


def write_checksums(folder: Path) -> None:
    """Write size and CRC-32 of every file in subfolders to the file NAME."""
    files = {
        str(path.relative_to(folder)): [path.stat().st_size, _crc(path)]
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    write_json(folder / NAME, {"files": files, "crc": _crc_of_table(files)})


def damage(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """Describe the first damaged file of a folder.

    Args:
      folder: Folder with the file NAME.
      share: Index of the share of the files to read, from 0.
      shares: Number of shares, one per process.

    Returns:
      A phrase that names the file and the damage; None if all files are intact.
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
