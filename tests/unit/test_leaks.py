"""The check that nothing is left behind finds what is, and only that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import leaks, needs
from tests.leaks import Snapshot

pytest_plugins = ["pytester"]


def found_since(before: Snapshot) -> list[str]:
    return Snapshot.take(machine=False).more_than(before)


def test_an_open_descriptor_is_found_and_one_that_took_anothers_place_is_not(tmp_path: Path) -> None:
    before = Snapshot.take(machine=False)
    file = (tmp_path / "file").open("w")
    assert found_since(before) == [f"descriptors: {tmp_path}/file"]
    before = Snapshot.take(machine=False)
    file.close()
    with (tmp_path / "other").open("w"):
        assert found_since(before) == []


def test_a_thread_is_found() -> None:
    before = Snapshot.take(machine=False)
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    assert [line.partition(":")[0] for line in found_since(before)] == ["threads"]
    gate.set()
    thread.join()
    assert leaks.leaked(before, False, lambda: None) == []


def test_an_orphaned_grandchild_is_found_until_it_has_ended() -> None:
    before = Snapshot.take(machine=False)
    script = "import subprocess; print(subprocess.Popen(['sleep', '987'], stdout=subprocess.DEVNULL).pid)"
    pid = int(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout)
    assert found_since(before) == ["processes: sleep 987"]
    os.kill(pid, signal.SIGKILL)
    assert leaks.leaked(before, False, lambda: None) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # reaped, not left as a zombie


def test_a_process_in_anothers_place_is_no_leak_and_a_second_one_is() -> None:
    first = subprocess.Popen(["sleep", "988"])
    before = Snapshot.take(machine=False)
    first.kill()
    first.wait()
    second, third = subprocess.Popen(["sleep", "988"]), None
    try:
        assert found_since(before) == []
        third = subprocess.Popen(["sleep", "988"])
        assert [line[:16] for line in found_since(before)] == ["processes: sleep"]
    finally:
        for process in (second, third):
            if process is not None:
                process.kill()
                process.wait()


@needs.ROOT
def test_mounts_and_cgroups_are_found(tmp_path: Path) -> None:
    before = Snapshot.take(machine=True)
    subprocess.run(["mount", "-t", "tmpfs", "leak", tmp_path], check=True)
    root = next(path for path in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup") if os.path.exists(f"{path}/cgroup.procs"))
    os.mkdir(f"{root}/leak-{os.getpid()}")
    try:
        found = Snapshot.take(machine=True).more_than(before)
        assert f"mounts: {tmp_path}" in found
        assert f"cgroups: {root}/leak-{os.getpid()}" in found
    finally:
        subprocess.run(["umount", tmp_path], check=True)
        os.rmdir(f"{root}/leak-{os.getpid()}")


def test_the_fixture_fails_a_test_that_leaks_and_lets_one_with_a_reason(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(Path(__file__).parents[1].joinpath("conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(
        """
        import os, pytest
        def test_clean(): os.close(os.open("/dev/null", os.O_RDONLY))
        def test_leaks(): os.open("/dev/null", os.O_RDONLY)
        @pytest.mark.leaks("to show that it may")
        def test_may(): os.open("/dev/null", os.O_RDONLY)
        @pytest.mark.leaks
        def test_without_reason(): pass
        """
    )
    before = set(os.listdir("/proc/self/fd"))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    for fd in set(os.listdir("/proc/self/fd")) - before:
        if os.path.exists(f"/proc/self/fd/{fd}"):
            os.close(int(fd))
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(["*left behind:*", "*descriptors: /dev/null*", "*needs a reason*"])
