"""What Quark is given to read, and where volumes land in an image."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.agent.drivers.quark.rootfs import place
from kuasar.agent.drivers.quark.settings import for_pod
from kuasar.agent.drivers.quark.specs import container_spec, process_spec
from kuasar.core.errors import BackendFailed
from tests.standins.quark_containers import check_process


def test_words_that_quark_does_not_know_are_left_out() -> None:
    process = {
        "args": ["sh"],
        "env": None,
        "user": {"uid": 1, "gid": 2, "additionalGids": None, "umask": 18},
        "capabilities": {"bounding": ["CAP_KILL", "CAP_BPF"], "ambient": None},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}, {"type": "RLIMIT_NEW", "soft": 1, "hard": 2}],
        "apparmorProfile": "x",
        "oomScoreAdj": 3,
    }
    assert process_spec(process) == {
        "args": ["sh"],
        "user": {"uid": 1, "gid": 2},
        "capabilities": {"bounding": ["CAP_KILL"], "ambient": []},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
    }


@given(st.lists(st.text(), max_size=4), st.lists(st.sampled_from(["CAP_KILL", "CAP_BPF", "CAP_PERFMON"])))
def test_whatever_it_is_given_can_be_read(args: list[str], names: list[str]) -> None:
    process = {"args": args, "cwd": "/", "capabilities": {"effective": names}, "rlimits": None}
    assert check_process(json.loads(json.dumps(process_spec(process))))["args"] == args


def test_binds_are_made_by_us_and_cgroups_by_nobody() -> None:
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": None},
        {"destination": "/data", "type": "bind", "source": "/x", "options": ["rbind"]},
        {"destination": "/other", "type": "none", "source": "/x", "options": ["bind"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
    ]
    spec = container_spec(
        {"process": {"args": ["x"]}, "root": {"path": "/elsewhere", "readonly": True}, "mounts": mounts}
    )
    assert spec["mounts"] == [{"destination": "/proc", "type": "proc", "source": "proc"}]
    assert spec["root"] == {"path": "rootfs", "readonly": True}


def test_the_operator_s_configuration_keeps_its_other_keys() -> None:
    assert for_pod('{"DebugLevel": "Off", "ShimMode": true}') == {
        "DebugLevel": "Off",
        "ShimMode": False,
        "Sandboxed": True,
    }


@pytest.mark.parametrize(("text", "words"), [("{", "no JSON"), ("[]", r"an object is needed, got '\[\]'")])
def test_a_configuration_that_is_none_is_named(text: str, words: str) -> None:
    with pytest.raises(BackendFailed, match=f"/etc/quark/config.json: {words}"):
        for_pod(text)


@pytest.mark.parametrize(
    ("links", "destination", "found"),
    [
        ({}, "/a/b/c", "a/b/c"),
        ({"a": "/etc"}, "/a/b", "etc/b"),
        ({"a": "../../../.."}, "/a/b", "b"),
        ({"a": "c/d"}, "/a/b", "c/d/b"),
        ({"a": "/c", "c": "/d"}, "/a", "d"),
    ],
)
def test_links_of_an_image_lead_back_into_it(
    tmp_path: Path, links: dict[str, str], destination: str, found: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name, target in links.items():
        (root / name).symlink_to(target)
    assert place(str(root), destination, True) == f"{root}/{found}"
    assert os.listdir(tmp_path) == ["root"]


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/b")
    (tmp_path / "b").symlink_to("/a")
    with pytest.raises(OSError, match="symbolic links"):
        place(str(tmp_path), "/a/x", True)
