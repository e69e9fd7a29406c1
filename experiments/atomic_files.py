"""Files of a run, whole or not there: whoever reads one, or a crash, sees the old or the new."""

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by some bytes."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as JSON."""
    write_text(path, json.dumps(value, indent=1))
