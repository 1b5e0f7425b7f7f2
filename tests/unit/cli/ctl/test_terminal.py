"""What is drawn where somebody looks at it: in a terminal of 80 columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from tests.unit.cli.ctl.node_files import Files

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def drawn(files: Files, *arguments: str, columns: int = 80) -> str:
    """What the terminal was sent."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        argv = [sys.executable, "-m", "kuasar.cli.ctl.main", "--config", str(files.config), *arguments]
        env = {**{name: text for name, text in os.environ.items() if name != "COLUMNS"}, "TERM": "xterm-256color"}
        process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=env)
    finally:
        os.close(theirs)
    received = b""
    try:
        while chunk := os.read(ours, 65536):
            received += chunk
    except OSError:  # how a terminal says that everybody has left
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0
    return received.decode()


def test_states_have_colours_and_lines_fit(files: Files) -> None:
    files.sandbox("abc123def456789", "a-pod-with-a-rather-long-name-of-its-own")
    files.sandbox("bcd", "db", state="stopped")
    text = drawn(files, "ps")
    assert "\x1b[32mready" in text
    lines = _STYLE.sub("", text).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("abc123def456 ") for line in lines)


def test_bars_fill_the_terminal(files: Files) -> None:
    files.sandbox("abc", "web", phases=[("files", 10.0), ("launch", 30.0)])
    first, second, _ = _STYLE.sub("", drawn(files, "timings", "abc")).splitlines()
    assert 2 * first.count("█") < second.count("█") < 4 * first.count("█")
    assert 70 <= len(second) <= 80
    assert second.index("█") > first.rindex("█"), "phases follow one another"


def test_top_draws_a_table_over_the_one_before(files: Files) -> None:
    files.sandbox("abc123def456789", "web", containers={"c1": {}})
    text = drawn(files, "top", "-n", "2", "-s", "0.1", columns=100)
    assert "\x1b[32mready" in text
    assert text.count("abc123def456") >= 2
    assert "\x1b[1A" in text or "\x1b[2A" in text, "the cursor went up for the second one"
