"""Atomic writes: readers, and a crash, see the old or the new file."""

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the content of a file by bytes."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Replace the content of a file by a text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the content of a file by a value, as JSON."""
    write_text(path, json.dumps(value, indent=1))
