"""``make pictures``: what kuasarctl shows of the running stack, as the README's pictures.

Needs the stack started, with pods to show (``make run``). Each command runs in a terminal of its own; what it draws, in
its colours, becomes ``docs/images/kuasarctl-<command>.svg``.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from scripts.layout import CHECKOUT
from scripts.stack import developers_layout

IMAGES = f"{CHECKOUT}/docs/images"
_COLUMNS, _ROWS = 112, 40
_CTL = f"{CHECKOUT}/.venv/bin/kuasarctl"
_SECONDS = 60.0
_ROUNDS = ("--rounds", "2")
"""So that it ends by itself."""
_MOVES = re.compile(r"\x1b\[\??\d*[A-Khl]|\r")
"""What a live table writes to go back over itself, and to hide the cursor."""
_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-family: sans-serif; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's own fetches a font from the network when it is shown."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exits with 1 when there is nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pictures", description=__doc__.partition("\n")[0])
    parser.parse_args(argv)
    config = developers_layout().config
    done = subprocess.run(
        [_CTL, "--config", config, "ps", "--json"], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    sandboxes = json.loads(done.stdout)["sandboxes"] if done.returncode == 0 else []
    machines = [each["pod_name"] for each in sandboxes if each["engine"] == "qemu"]
    if not machines:
        print(f"no machine runs, 'make run' starts one {done.stderr}".rstrip(), file=sys.stderr)
        return 1
    for words in (["ps"], ["top", *_ROUNDS], ["timings", machines[0]]):
        name = f"kuasarctl-{words[0]}.svg"
        title = " ".join(["kuasarctl", *(word for word in words if word not in _ROUNDS)])
        draw(terminal([_CTL, "--config", config, *words]), title, f"{IMAGES}/{name}")
        print(f"docs/images/{name}")
    return 0


def terminal(command: Sequence[str]) -> str:
    """What ``command`` has left on a terminal that is wide enough. Raises ``CalledProcessError``."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color"}
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, env=environment) as process:
            os.close(theirs)
            text = b""
            with suppress(OSError):  # the last user of the terminal is gone
                while chunk := os.read(ours, 65536):
                    text += chunk
            if process.wait(_SECONDS):
                raise subprocess.CalledProcessError(process.returncode, command, text)
    finally:
        os.close(ours)
    screen = text.decode().replace("\r\n", "\n").rstrip().removesuffix("\x1b[?25h")
    return _MOVES.split(screen)[-1].strip("\n")


def draw(screen: str, title: str, path: str) -> None:
    """A picture of what a terminal shows."""
    lines = [line.rstrip() for line in screen.split("\n")]
    text = Text.from_ansi("\n".join(lines))
    width = max(60, *(each.cell_len for each in text.split("\n")))
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(text)
    with open(path, "w", encoding="utf-8") as file:
        file.write(console.export_svg(title=title, theme=MONOKAI, code_format=_SVG, unique_id="kuasar"))


if __name__ == "__main__":
    sys.exit(main())
