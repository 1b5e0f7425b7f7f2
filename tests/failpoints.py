"""Arming failpoints from a test (kuasar/core/failpoints.py), in whatever process they are hit."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


def arm(directory: str | Path, name: str, action: str) -> None:
    """Have the point ``name`` do ``action`` from now on; its hits are counted anew."""
    disarm(directory, name)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    fresh = Path(directory, f".{name}.new")
    fresh.write_text(action)
    fresh.rename(Path(directory, name))


def disarm(directory: str | Path, name: str) -> None:
    """Harmless when it is not armed."""
    for path in (Path(directory, name), Path(directory, "hits", name)):
        with suppress(FileNotFoundError):
            path.unlink()


def hits(directory: str | Path, name: str) -> int:
    """How often an armed point has been hit, in all processes."""
    try:
        return Path(directory, "hits", name).stat().st_size
    except FileNotFoundError:
        return 0


def points_in_code() -> Iterator[str]:
    """All names in the package; the changing part of one is ``*``."""
    for path in sorted((ROOT / "kuasar").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                yield _name_of(node.args[0])


def _name_of(argument: ast.expr) -> str:
    if isinstance(argument, ast.Constant):
        return str(argument.value)
    assert isinstance(argument, ast.JoinedStr), "the name of a failpoint is written where it is"
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in argument.values)


def points_in_docs() -> set[str]:
    """The names in the first column of the table in docs/failpoints.md."""
    text = (ROOT / "docs/failpoints.md").read_text(encoding="utf-8")
    return {name for row in re.findall(r"^\| (`.+?) \|", text, re.M) for name in re.findall(r"`([^`]+)`", row)}
