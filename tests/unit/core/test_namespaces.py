"""Paths that are network namespaces, and those that are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kuasar.core.errors import InvalidArgument, NotFound
from kuasar.core.namespaces import is_own_netns, join_netns, open_netns


def test_the_own_namespace_is_known() -> None:
    assert is_own_netns("/proc/self/ns/net")
    assert not is_own_netns("/proc/self/ns/mnt")


def test_what_is_gone_or_never_was(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="netns"):
        join_netns(str(tmp_path / "gone"))
    for path in (str(tmp_path), "/proc/self/ns/mnt", "a\0b"):
        with pytest.raises(InvalidArgument) as caught:
            join_netns(path)
        assert caught.value.field == "netns"


def test_descriptors_are_not_inherited() -> None:
    fd = open_netns("/proc/self/ns/net")
    try:
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
