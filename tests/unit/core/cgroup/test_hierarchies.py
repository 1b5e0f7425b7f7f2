"""Which hierarchies a mount table names, and how paths in them are spelt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.core.cgroup.hierarchies import Hierarchies, expand, parse_mountinfo
from kuasar.core.errors import InvalidArgument

V1 = """\
22 1 0:20 / /proc rw,nosuid shared:5 - proc proc rw
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
33 30 0:29 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
36 30 0:33 / /sys/fs/cgroup/cpu,cpuacct rw shared:16 - cgroup cgroup rw,cpu,cpuacct
37 30 0:34 / /sys/fs/cgroup/memory rw shared:17 master:2 - cgroup cgroup rw,memory
38 30 0:34 /docker/x /elsewhere rw - cgroup cgroup rw,memory
39 30 0:34 / /second/memory rw - cgroup cgroup rw,memory
"""
UNIFIED = "31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n"
V2 = "31 30 0:27 / /sys/fs/cgroup rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_1() -> None:
    found = parse_mountinfo(V1)
    assert found.version == 1
    assert found.path("memory", "/a") == "/sys/fs/cgroup/memory/a"
    assert found.path("cpu", "/a") == found.path("cpuacct", "/a") == "/sys/fs/cgroup/cpu,cpuacct/a"
    assert found.path("name=systemd", "/a") == "/sys/fs/cgroup/systemd/a"
    assert found.path("pids", "/a") is None
    assert len(found.roots()) == 3


def test_hybrid_is_version_1_with_one_more_root() -> None:
    found = parse_mountinfo(V1 + UNIFIED)
    assert (found.version, found.unified) == (1, "/sys/fs/cgroup/unified")
    assert found.path("memory", "/a") == "/sys/fs/cgroup/memory/a"
    assert found.directories("/a")[-1] == "/sys/fs/cgroup/unified/a"


def test_version_2() -> None:
    found = parse_mountinfo(V2)
    assert found.version == 2
    assert found.path("memory", "/a") == found.path("pids", "/a") == "/sys/fs/cgroup/a"
    assert found.roots() == ["/sys/fs/cgroup"]


@given(st.text(max_size=300))
def test_any_text_is_some_table(text: str) -> None:
    assert isinstance(parse_mountinfo(text), Hierarchies)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b", "/a/b"),
        ("a//b/", "/a/b"),
        ("../../etc", "/etc"),
        ("a.slice", "/a.slice"),
        ("a-b.slice", "/a.slice/a-b.slice"),
        ("/a-b.slice", "/a-b.slice"),
        ("a-b.slice:p:n", "/a.slice/a-b.slice/p-n.scope"),
        (":p:n", "/system.slice/p-n.scope"),
        ("a.slice:p:n.slice", "/a.slice/n.slice"),
    ],
)
def test_expand(path: str, expected: str) -> None:
    assert expand(path) == expected


@pytest.mark.parametrize("path", ["", "/", "..", "a:b:c", "a--b.slice:p:n", ".slice:p:n", "a.slice:p:", "a\0b"])
def test_what_names_no_cgroup(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"linux\.cgroupsPath"):
        expand(path)


@given(st.text(max_size=60))
def test_no_path_leads_out(path: str) -> None:
    try:
        found = expand(path)
    except InvalidArgument:
        return
    assert found.startswith("/")
    assert ".." not in found.split("/")
