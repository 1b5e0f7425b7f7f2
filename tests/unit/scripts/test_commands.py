"""The scripts a person types: what they refuse, and what they do when there is nothing to do."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kuasar.cli.images import PAUSE, Entry, Image, write_archive
from scripts.demo import _output
from scripts.layout import CHECKOUT, Layout
from scripts.stack import Stack, StackError, _names
from tests import needs


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, cwd=CHECKOUT, timeout=60, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "usage: fetch-deb.sh [--with-dependencies] SUITE PACKAGE DEST"),
        (("forky", "a b", "x"), "not a suite and a package"),
        (("forky;id", "containerd", "x"), "not a suite and a package"),
    ],
)
def test_fetch_deb_refuses(arguments: tuple[str, ...], says: str) -> None:
    done = run("scripts/fetch-deb.sh", *arguments)
    assert done.returncode == 1
    assert says in done.stderr


def test_fetch_deb_needs_the_keyring(tmp_path: Path) -> None:
    done = run("scripts/fetch-deb.sh", "forky", "containerd", str(tmp_path / "d"), KEYRING=str(tmp_path / "none"))
    assert done.returncode == 1
    assert "no Debian archive keyring" in done.stderr
    assert os.listdir(tmp_path) == []


def test_fetch_deb_has_nothing_to_do_twice(tmp_path: Path) -> None:
    (tmp_path / ".package").write_text("containerd 2.1.9 amd64 forky\n")
    done = run("scripts/fetch-deb.sh", "forky", "containerd", str(tmp_path), KEYRING="/none")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_explains_every_target() -> None:
    makefile = Path(CHECKOUT, "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)[0].split()
    explained = [line.split()[0] for line in run("make", "--no-print-directory", "help").stdout.splitlines()]
    assert sorted(explained) == sorted(targets)


def test_when_listening_becomes_the_command(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    argv = [sys.executable, "-I", "-S", f"{CHECKOUT}/scripts/when_listening.py", path, "/bin/echo", "listening"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)  # refused until it listens
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as waiting:
            server.listen(1)
            out, _ = waiting.communicate(timeout=30)
    assert out == b"listening\n"


def test_stack_that_does_not_run_says_what_is_missing(tmp_path: Path) -> None:
    stack = Stack(Layout(name=f"u{secrets.token_hex(3)}", data=str(tmp_path)))
    assert not stack.is_running()
    with pytest.raises(StackError, match="gateway does not listen on /run/kuasar-u"):
        stack.wait_ready(0.1)


@needs.ROOT
def test_stopping_what_does_not_run_leaves_nothing(tmp_path: Path) -> None:
    stack = Stack(Layout(name=f"u{secrets.token_hex(3)}", data=str(tmp_path)))
    os.makedirs(stack.layout.run)
    try:
        assert stack.stop() == []
        assert not os.path.exists(stack.layout.run)
    finally:
        shutil.rmtree(stack.layout.run, ignore_errors=True)


def test_names_come_from_the_archive(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tar")
    write_archive(Image(PAUSE, (Entry("a", b""),)), path)
    assert _names(path) == [PAUSE]


def test_output_is_the_log_without_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "main_0.log"
    path.write_text("2026-01-01T00:00:00.0Z stdout F one two\n2026-01-01T00:00:00.0Z stderr F \n")
    assert _output(str(path)) == "one two\n"
    assert _output(str(tmp_path / "none")) == ""
