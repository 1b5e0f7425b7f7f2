"""One blocking system call beside the loop, for the few that the kernel takes long over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from kuasar.core.aio import Loop

T = TypeVar("T")


async def in_thread(loop: Loop, function: Callable[[], T]) -> T:
    """The result of ``function``, which runs in a thread of its own; raises what it raises.

    A cancelled caller still waits for it: a system call cannot be taken back. Never before a fork.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def work() -> None:
        try:
            outcome.append(function())
        except BaseException as exc:
            failure.append(exc)
        os.eventfd_write(done, 1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        await loop.wait_readable(done)
    finally:
        loop.remove_reader(done)
        thread.join()
        os.close(done)
    if failure:
        raise failure[0]
    return outcome[0]
