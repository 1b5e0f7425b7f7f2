"""FIFOs are opened without waiting, and nothing else is taken for one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kuasar.core.errors import InvalidArgument
from kuasar.core.fifo import check_path, open_fifo


def test_a_fifo_without_peers_is_opened_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    fd = open_fifo(str(tmp_path / "f"), os.O_RDONLY, "stdout")
    assert not os.get_blocking(fd)
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nonexistent", "No such file"),
        ("/etc/hostname", "is not a FIFO"),
        ("/dev/null", "is not a FIFO"),
        ("/a\0b", "null"),
    ],
)
def test_what_is_no_fifo_is_refused_by_name(path: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=f"stdin.*{words}") as raised:
        open_fifo(path, os.O_RDONLY, "stdin")
    assert raised.value.field == "stdin"


@pytest.mark.parametrize("path", ["relative", "binary:///usr/bin/logger", "file:///log"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(InvalidArgument, match="stdout"):
        check_path(path, "stdout")
    check_path("", "stdout")
    check_path("/run/fifo", "stdout")
