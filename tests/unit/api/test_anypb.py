"""Any as containerd speaks it."""

import pytest
from google.protobuf.any_pb2 import Any

from kuasar.api import anypb
from kuasar.api.gen.containerd.events.task_pb2 import TaskExit, TaskOOM


def test_type_url_is_the_bare_name() -> None:
    packed = anypb.pack(TaskExit(container_id="c"))
    assert packed.type_url == "containerd.events.TaskExit"
    assert anypb.unpack(packed, TaskExit).container_id == "c"


def test_a_prefixed_type_url_is_read_too() -> None:
    packed = Any()
    packed.Pack(TaskExit(container_id="c"))
    assert packed.type_url == "type.googleapis.com/containerd.events.TaskExit"
    assert anypb.unpack(packed, TaskExit).container_id == "c"


def test_another_type_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"expected a containerd\.events\.TaskOOM.*'containerd.events.TaskExit'"):
        anypb.unpack(anypb.pack(TaskExit()), TaskOOM)


def test_damaged_bytes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"not a valid containerd\.events.TaskExit: 2 bytes"):
        anypb.unpack(Any(type_url="containerd.events.TaskExit", value=b"\x0a\x7f"), TaskExit)
