"""Moving oneself between real cgroups; needs root."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from kuasar.core import cgroup
from kuasar.core.errors import BackendFailed, Unavailable

pytestmark = pytest.mark.root


@pytest.fixture
def path() -> Iterator[str]:
    """A cgroup in all hierarchies, removed again when the processes in it have ended."""
    name = f"/kuasar-test-{os.getpid()}"
    cgroup.create(name)
    yield name
    for directory in cgroup.current().directories(name):
        os.rmdir(directory)


def in_child(work: Callable[[], str]) -> str:
    """What ``work`` says in a process of its own, which has ended when this returns."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            words = work()
        except BaseException as exc:
            words = f"{type(exc).__name__}: {exc}"
        os.write(write_end, words.encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, encoding="utf-8") as told:
        words = told.read()
    os.waitpid(pid, 0)
    return words


def counted() -> set[str]:
    """Where this process is, in every hierarchy that has controllers."""
    hierarchies = cgroup.current()
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    return {where for _, controllers, where in lines if controllers or hierarchies.version == 2}


def test_a_process_of_one_thread_moves_into_every_controller(path: str) -> None:
    def work() -> str:
        cgroup.enter_alone(path)
        return str(counted())

    assert in_child(work) == str({path})


def test_its_children_are_born_there(path: str) -> None:
    def work() -> str:
        cgroup.enter_alone(path)
        return in_child(lambda: str(counted()))

    assert in_child(work) == str({path})


def test_a_missing_cgroup_is_named() -> None:
    def work() -> str:
        cgroup.enter_alone("/kuasar-test-not-there")
        return "moved"

    words = in_child(work)
    assert words.startswith(f"{BackendFailed.__name__}: cannot enter cgroup ")
    assert "/kuasar-test-not-there/" in words


def test_a_process_of_several_threads_is_refused_and_stays(path: str) -> None:
    def work() -> str:
        before = counted()
        over = threading.Event()
        thread = threading.Thread(target=over.wait)
        thread.start()
        try:
            cgroup.enter_alone(path)
        except Unavailable:
            return "refused" if counted() == before else "moved"
        finally:
            over.set()
            thread.join()
        return "not refused"

    assert in_child(work) == "refused"
