"""Programs that a thread or a tool waits for: the door beside ``core/spawn.py`` for those who have no loop of ours.

``subprocess`` starts them by ``vfork``, which is safe beside gRPC's threads: nothing of this process runs in the child.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from kuasar.core.errors import BackendFailed, DeadlineExceeded
from kuasar.core.spawn import MINIMAL_ENV, PATH


@dataclass(frozen=True)
class Output:
    """What a program that has ended left."""

    code: int
    """Its exit code, or minus the number of the signal that killed it."""
    out: str
    err: str


def run_program(argv: Sequence[str], seconds: float) -> Output:
    """Run ``argv`` to its end, with nothing to read and a minimal environment.

    Raises :class:`BackendFailed` if it cannot be started; after ``seconds`` it is killed and
    :class:`DeadlineExceeded` raised.
    """
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, env=dict(MINIMAL_ENV), timeout=seconds
        )
    except OSError as exc:
        raise BackendFailed(f"cannot start {argv[0]}: {exc.strerror}", errno=exc.errno) from exc
    except subprocess.TimeoutExpired as exc:
        raise DeadlineExceeded(f"{argv[0]} {' '.join(argv[1:3])}: no end within {seconds:g} s") from exc
    return Output(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def find_program(name: str) -> str | None:
    """The path of a program: of a name on the minimal environment's PATH, of a path the path itself; None if there is
    none to be executed."""
    return shutil.which(name, path=PATH)
