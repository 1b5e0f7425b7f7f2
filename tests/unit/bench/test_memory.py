"""Memory and processes, as the kernel tells of them."""

from __future__ import annotations

import mmap
import os
import subprocess

from tests.bench.memory import mean
from tests.bench.processes import Process, below, processes
from tests.bench.smaps import Memory, memory_files_mib, memory_of, parse, pss_mib

MAPPINGS = """\
55d0c0a00000-55d0c0b00000 rw-p 00000000 00:00 0                          [heap]
Rss:                2048 kB
Pss:                1024 kB
Private_Clean:         0 kB
Private_Dirty:      1024 kB
Anonymous:          2048 kB
7f0000000000-7f0008000000 rw-s 00000000 00:01 4242                       /memfd:kuasar-memory (deleted)
Rss:               40960 kB
Pss:               30720 kB
Private_Clean:         0 kB
Private_Dirty:     20480 kB
Anonymous:             0 kB
7f1000000000-7f1000400000 r--p 00000000 08:01 77                         /usr/bin/qemu-system-x86_64
Rss:                3072 kB
Pss:                2048 kB
Private_Clean:      1024 kB
Private_Dirty:       512 kB
Anonymous:           512 kB
VmFlags: rd mr mw me
"""


def test_smaps_are_split_by_what_is_mapped() -> None:
    memory = parse(MAPPINGS.splitlines())
    assert memory == Memory(1.5, 1.0, 20.0, 3.0)
    assert memory.private == 22.5


def test_pages_written_to_a_private_view_of_a_memory_file_are_anonymous() -> None:
    lines = MAPPINGS.replace("Anonymous:             0 kB", "Anonymous:         10240 kB").splitlines()
    assert parse(lines) == Memory(11.5, 1.0, 10.0, 3.0)


def test_memory_of_a_process_that_has_a_memory_file() -> None:
    pid, size = os.getpid(), 8 << 20
    before, files_before = memory_of(pid), memory_files_mib(pid)
    descriptor = os.memfd_create("bench-test")
    second = os.dup(descriptor)
    try:
        os.ftruncate(descriptor, size)
        with mmap.mmap(descriptor, size) as view:
            for at in range(0, size // 2, mmap.PAGESIZE):
                view[at] = 1
            during = memory_of(pid)
            assert during.private_of_memory_files - before.private_of_memory_files == size / 2 / 2**20
        # what is allocated counts once, mapped or not
        assert memory_files_mib(pid) - files_before == size / 2 / 2**20
    finally:
        os.close(descriptor)
        os.close(second)
    assert during.private_anonymous > 0
    assert 0 < during.pss <= pss_mib(pid) + 8


def test_descendants_are_found() -> None:
    known = {pid: Process(pid, parent, "") for pid, parent in ((2, 1), (3, 2), (4, 3), (5, 1), (6, 5))}
    assert below(2, known) == {3, 4}
    assert below(1, known) == {2, 3, 4, 5, 6}
    assert below(4, known) == set()


def test_processes_are_seen_with_command_and_parent() -> None:
    with subprocess.Popen(["cat", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echoing:
        assert echoing.stdin is not None
        assert echoing.stdout is not None
        echoing.stdin.write(b"up\n")
        echoing.stdin.flush()
        assert echoing.stdout.readline() == b"up\n"  # before that its command line may not be there yet
        found = processes()[echoing.pid]
        echoing.stdin.close()
    assert (found.parent, found.command.split()) == (os.getpid(), ["cat", "-"])


def test_a_mean_counts_pods_that_lack_a_role() -> None:
    assert mean([{"worker": 4.0, "container": 2.0}, {"worker": 6.0}]) == {"worker": 5.0, "container": 1.0}
