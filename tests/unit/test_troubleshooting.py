"""The messages that docs/troubleshooting.md explains are those that the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
NOT_OURS = (
    'no runtime for "',
    "No space left on device",
    "kuasarctl ",
    "kubectl ",
    "unknown interface kind",
    "is truncated",
)
"""Of containerd, of the kernel, of the guest; commands."""


def texts() -> list[str]:
    """Every text of the code; what is put into one is an ellipsis."""
    found = []
    for path in (ROOT / "kuasar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def messages() -> list[str]:
    """The first cell of each row, where it is a message, and messages in the middle of an explanation."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith(("| `", "| …")):
            found += re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return [message for message in found if not message.startswith(NOT_OURS)]


@pytest.fixture(scope="module")
def known() -> list[str]:
    return texts()


@pytest.mark.parametrize("message", messages())
def test_the_code_says_it(message: str, known: list[str]) -> None:
    parts = [part for part in re.split(r"\s*…\s*", message) if part]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    assert any(pattern.search(text) for text in known), message


def test_commands_are_commands() -> None:
    import click

    from kuasar.cli.ctl.main import main

    context = click.Context(main, info_name="kuasarctl")
    for page in ("troubleshooting.md", "operations.md", "quick-start.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for name in re.findall(r"(?:`|^    )kuasarctl ([a-z-]+)", text, re.MULTILINE):
            assert main.get_command(context, name) is not None, f"{page}: kuasarctl {name}"
