"""The small parts of the agent: mount options, kernel parameters, request bodies, events, directories, runtime logs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.agent import kernel
from kuasar.agent.drivers.base import Context
from kuasar.agent.drivers.registry import DRIVERS, make_driver
from kuasar.agent.drivers.runtime import last_error
from kuasar.agent.events import MAX_KEPT, EventLog
from kuasar.agent.files import remove_tree
from kuasar.agent.mounts import Options, parse_options, shorten
from kuasar.agent.protocol import Event
from kuasar.agent.requests import Body
from kuasar.agent.setup import sysctl_path
from kuasar.agent.stdio import StdioPaths
from kuasar.core.aio import Loop
from kuasar.core.errors import InvalidArgument, KuasarError, Unimplemented
from kuasar.core.spawn import Children

# -- mounts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ([], 0, ()),
        (["ro", "nosuid", "nodev", "noexec"], 1 | 2 | 4 | 8, ()),
        (["ro", "rw"], 0, ()),
        (["rbind", "rprivate"], kernel.MS_BIND | kernel.MS_REC, ()),
        (["lowerdir=/a:/b", "ro", "index=off"], 1, ("lowerdir=/a:/b", "index=off")),
        (["defaults", "", "noatime", "size=1"], 0x400, ("size=1",)),
    ],
)
def test_mount_options(options: list[str], flags: int, data: tuple[str, ...]) -> None:
    assert parse_options(options, "f") == Options(flags, data)


@pytest.mark.parametrize(("option", "error"), [("rshared", InvalidArgument), ("loop", Unimplemented)])
def test_mount_options_that_cannot_be_had(option: str, error: type[KuasarError]) -> None:
    with pytest.raises(error, match=rf"rootfs\[0\]\.options: {option}"):
        parse_options([option], "rootfs[0].options")


def test_lower_layers_are_shortened_by_what_they_share() -> None:
    data = ("upperdir=/s/9/fs", "lowerdir=/s/1/fs:/s/22/fs")
    assert shorten(data) == ("/s", ("upperdir=/s/9/fs", "lowerdir=1/fs:22/fs"))
    assert shorten(("lowerdir=/s/1",)) == ("/s", ("lowerdir=1",))
    assert shorten(("lowerdir=/s:/s/1",)) == ("/", ("lowerdir=s:s/1",))


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=6))
def test_shortened_layers_are_the_same_layers(paths: list[list[str]]) -> None:
    layers = ["/" + "/".join(path) for path in paths]
    common, (option,) = shorten((f"lowerdir={':'.join(layers)}",))
    again = [os.path.normpath(os.path.join(common, layer)) for layer in option.removeprefix("lowerdir=").split(":")]
    assert again == layers


# -- kernel parameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.5/rp_filter", "/proc/sys/net/ipv4/conf/eth0.5/rp_filter"),
        ("net.ipv4.conf.eth0/5.rp_filter", "/proc/sys/net/ipv4/conf/eth0.5/rp_filter"),
        ("kernel.shm_rmid_forced", "/proc/sys/kernel/shm_rmid_forced"),
        ("kernel.sem", "/proc/sys/kernel/sem"),
        ("fs.mqueue.msg_max", "/proc/sys/fs/mqueue/msg_max"),
    ],
)
def test_parameters_of_the_pod(key: str, path: str) -> None:
    assert sysctl_path(key, lambda _: False) == path


@pytest.mark.parametrize(
    "key", ["", "net", "kernel.pid_max", "fs.file-max", "vm.overcommit_memory", "netx.a", "net..ipv4", "net/../vm/x"]
)
def test_parameters_of_the_host_and_nonsense_are_refused(key: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        sysctl_path(key, lambda _: False)
    assert raised.value.field == f"sysctls.{key}"


@pytest.mark.parametrize(("key", "kind"), [("net.ipv4.ip_forward", "net"), ("kernel.shmmax", "ipc")])
def test_parameters_of_a_namespace_shared_with_the_host_are_refused(key: str, kind: str) -> None:
    with pytest.raises(InvalidArgument, match=f"host's {kind} namespace"):
        sysctl_path(key, {kind}.__contains__)


@given(st.text(max_size=40))
def test_no_name_leads_out_of_proc_sys(key: str) -> None:
    try:
        path = sysctl_path(key, lambda _: False)
    except InvalidArgument:
        return
    assert os.path.normpath(path) == path
    assert path.startswith(("/proc/sys/net/", "/proc/sys/kernel/", "/proc/sys/fs/mqueue/"))


# -- requests ----------------------------------------------------------------------------------------------------------


def test_absent_fields_have_their_neutral_value() -> None:
    body = Body({"nothing": None})
    assert (body.text("a"), body.number("a"), body.seconds("a"), body.flag("a")) == ("", 0, 0.0, False)
    assert (body.mapping("a"), body.items("a"), body.exec_id(), body.text("nothing")) == ({}, [], "", "")


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("text", 1),
        ("text", b"x"),
        ("number", "1"),
        ("number", True),
        ("number", 1.5),
        ("seconds", float("nan")),
        ("seconds", -1),
        ("seconds", float("inf")),
        ("flag", 1),
        ("mapping", []),
        ("items", {}),
        ("identifier", None),
        ("identifier", "../x"),
    ],
)
def test_a_wrong_field_is_named(method: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match="what") as raised:
        getattr(Body({"what": value}), method)("what")
    assert raised.value.field == "what"


@pytest.mark.parametrize("field", ["stdin", "stdout", "stderr"])
def test_streams_must_be_absolute_paths(field: str) -> None:
    for value in ("file:///x", "binary://x", "ttrpc+unix:///s?streaming_id=1", "relative"):
        with pytest.raises(InvalidArgument) as raised:
            StdioPaths(False, *(value if name == field else "" for name in ("stdin", "stdout", "stderr")))
        assert raised.value.field == field


# -- events ------------------------------------------------------------------------------------------------------------


def test_events_are_kept_until_acknowledged_and_have_unique_ids() -> None:
    log, sent = EventLog(), list[Event]()
    log.on_publish = sent.append
    for number in range(3):
        log.publish("task.exit", number=number)
    assert [event.seq for event in sent] == [1, 2, 3]
    assert len({event.body["id"] for event in sent}) == 3
    assert list(log.unacknowledged()) == sent
    log.ack(2)
    log.ack(1)
    assert list(log.unacknowledged()) == sent[2:]
    log.ack(99)
    assert list(log.unacknowledged()) == []


def test_events_that_nobody_acknowledges_are_bounded() -> None:
    log = EventLog()
    for number in range(MAX_KEPT + 2):
        log.publish("task.exit", number=number)
    kept = list(log.unacknowledged())
    assert (len(kept), kept[0].seq) == (MAX_KEPT, 3)


# -- directories -------------------------------------------------------------------------------------------------------


def test_a_tree_is_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "link").symlink_to(outside)
    os.mkfifo(tree / "fifo")
    remove_tree(str(tree))
    remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "file").read_text() == "x"


# -- runtimes ----------------------------------------------------------------------------------------------------------


def test_the_last_error_of_a_runtimes_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_error(str(log)) == ""
    lines = [{"level": "error", "msg": "first"}, {"level": "error", "msg": "last"}, {"level": "warning", "msg": "w"}]
    log.write_text("\n".join(map(json.dumps, lines)))
    assert last_error(str(log)) == "last"
    log.write_text("plain words\nof another runtime")
    assert last_error(str(log)) == "of another runtime"
    log.write_bytes(b'{"level":"error","msg":"early"}\n' + b"[]\n" * 50000)
    assert last_error(str(log)) == "[]"


def test_drivers_by_name() -> None:
    loop = Loop()
    children = Children(loop)
    context = Context(loop, children, "/nonexistent")
    try:
        assert make_driver("oci", context, {"binary": "crun"}).name == "oci"
        with pytest.raises(InvalidArgument, match=r"options\.binary"):
            make_driver("oci", context, {"binary": 5})
        with pytest.raises(InvalidArgument, match=r"options\.cache_dir"):
            make_driver("wasmtime", context, {})
        with pytest.raises(InvalidArgument, match=", ".join(sorted(DRIVERS))):
            make_driver("nonsense", context, {})
    finally:
        children.close()
        loop.close()
