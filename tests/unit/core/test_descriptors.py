"""The budget of descriptors."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from kuasar.core.descriptors import RESERVE, in_use, require_room
from kuasar.core.errors import ResourceExhausted


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_is_in_use_is_counted() -> None:
    before = in_use()
    with open("/dev/null"):
        assert in_use() == before + 1


def test_there_is_room_until_the_reserve_begins(limits: tuple[int, int]) -> None:
    used = in_use()
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + RESERVE + 3, limits[1]))
    require_room(3, "a thing")
    with pytest.raises(ResourceExhausted, match=r"a thing: .* 4 more cannot be had") as caught:
        require_room(4, "a thing")
    assert (caught.value.data["used"], caught.value.data["limit"]) == (used, used + RESERVE + 3)
