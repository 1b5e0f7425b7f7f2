"""Programs that somebody waits for."""

from __future__ import annotations

import sys

import pytest

from kuasar.core.errors import BackendFailed, DeadlineExceeded
from kuasar.core.programs import run_program


def test_output_and_code() -> None:
    script = "import os, sys; print(sorted(os.environ)); sys.stderr.write('x'); sys.exit(3)"
    done = run_program([sys.executable, "-I", "-c", script], 30)
    assert (done.code, done.err) == (3, "x")
    assert "PATH" in done.out
    assert "HOME" not in done.out


def test_what_cannot_be_started_and_what_does_not_end() -> None:
    with pytest.raises(BackendFailed, match="cannot start /nonexistent/x"):
        run_program(["/nonexistent/x"], 5)
    with pytest.raises(DeadlineExceeded, match="no end within"):
        run_program(["/bin/sleep", "100"], 0.1)
