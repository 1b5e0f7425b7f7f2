"""The specification of a WebAssembly container, read totally."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.agent.drivers.wasm.plan import Mount, Plan, Preopen, Rlimit, module_memory, plan, preopens
from kuasar.core.errors import InvalidArgument

MIB = 1024 * 1024


def read(process: dict[str, Any] | None = None, **rest: Any) -> Plan:
    return plan("/rootfs", {"process": {"args": ["/app.wasm"], "cwd": "/"} | (process or {}), **rest})


def bind(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": "/host", "options": ["rbind", *options]}


def test_the_smallest_specification() -> None:
    planned = plan("/rootfs", {"process": {"args": ["/app.wasm"]}})
    assert planned.rootfs == "/rootfs"
    assert planned.module_candidates() == ["/app.wasm"]
    assert planned.argv == ("/app.wasm",)
    assert planned.env == (("PWD", "/"),)
    assert (planned.cwd, planned.uid, planned.gid, planned.groups) == ("/", 0, 0, ())
    assert (planned.memory_limit, planned.umask, planned.oom_score_adj) == (None, None, None)
    assert (planned.mounts, planned.rlimits, planned.capabilities, planned.cgroup) == ((), (), 0, "")


@pytest.mark.parametrize(
    ("args", "module", "argv"),
    [
        (["/app.wasm", "-v", "x"], "/app.wasm", ("/app.wasm", "-v", "x")),
        (["wasmtime", "run", "/app.wasm", "x"], "/app.wasm", ("/app.wasm", "x")),
        (["/bin/app", "x"], "/bin/app", ("/bin/app", "x")),
        (["/app.wasm", "other.wasm"], "/app.wasm", ("/app.wasm", "other.wasm")),
    ],
)
def test_the_module_and_its_arguments(args: list[str], module: str, argv: tuple[str, ...]) -> None:
    planned = read({"args": args})
    assert (planned.module, planned.argv) == (module, argv)


def test_a_relative_module_is_looked_for_in_the_working_directory_and_then_in_path() -> None:
    planned = read({"args": ["app.wasm"], "cwd": "/work", "env": ["PATH=/bin:relative:/usr/bin"]})
    assert planned.module_candidates() == ["/work/app.wasm", "/bin/app.wasm", "/usr/bin/app.wasm"]
    assert read({"args": ["x/app.wasm"], "cwd": "/work", "env": ["PATH=/bin"]}).module_candidates() == [
        "/work/x/app.wasm"
    ]


def test_pwd_is_the_working_directory_unless_given() -> None:
    assert ("PWD", "/work") in read({"cwd": "/work"}).env
    assert read({"cwd": "/work", "env": ["PWD=/else"]}).env == (("PWD", "/else"),)


def test_a_value_may_contain_an_equals_sign_and_be_empty() -> None:
    assert read({"env": ["A=b=c", "E="]}).env[:2] == (("A", "b=c"), ("E", ""))


def test_capabilities_that_concern_files_are_kept_for_root_only() -> None:
    sets = {"effective": ["CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN", "CAP_NET_RAW"], "ambient": []}
    assert read({"capabilities": sets}).capabilities == 1 << 1
    assert read({"capabilities": sets, "user": {"uid": 1000}}).capabilities == 0
    sets["ambient"] = ["CAP_CHOWN"]
    assert read({"capabilities": sets, "user": {"uid": 1000}}).capabilities == 1 << 0


def test_rlimits() -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1}]
    assert read({"rlimits": limits}).rlimits == (Rlimit("RLIMIT_NOFILE", 10, 20), Rlimit("RLIMIT_CORE", 0, -1))


@pytest.mark.parametrize(("limit", "memory"), [(64 * MIB, 60 * MIB), (4 * MIB, 2 * MIB), (MIB, MIB // 2)])
def test_the_engine_keeps_a_share_of_the_memory(limit: int, memory: int) -> None:
    assert module_memory(limit) == memory
    assert read(linux={"resources": {"memory": {"limit": limit}}}).memory_limit == memory


@pytest.mark.parametrize("limit", [-1, 0, None])
def test_no_memory_limit(limit: int | None) -> None:
    assert read(linux={"resources": {"memory": {"limit": limit}}}).memory_limit is None


def test_kernel_file_systems_are_left_out_and_the_order_is_kept() -> None:
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
        bind("/data//x/../y", "ro"),
    ]
    assert read(mounts=mounts).mounts == (
        Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "size=65536k"), "mounts[1]"),
        Mount("/data/y", "bind", "/host", ("rbind", "ro"), "mounts[3]"),
    )


@pytest.mark.parametrize(
    ("options", "read_only"),
    [((), False), (("ro",), True), (("rro",), True), (("ro", "rw"), False), (("rw", "ro"), True)],
)
def test_of_contradicting_options_the_last_counts(options: tuple[str, ...], read_only: bool) -> None:
    assert Mount("/x", "bind", "/h", options, "").read_only is read_only


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"process": []}, "process"),
        ({"process": {}}, "process.args"),
        ({"process": {"args": "x"}}, "process.args"),
        ({"process": {"args": [""]}}, "process.args"),
        ({"process": {"args": ["x", 1]}}, "process.args[1]"),
        ({"process": {"args": ["x\0"]}}, "process.args[0]"),
        ({"process": {"args": ["\udc80"]}}, "process.args[0]"),
        ({"process": {"args": ["x"], "env": ["A"]}}, "process.env[0]"),
        ({"process": {"args": ["x"], "env": ["=a"]}}, "process.env[0]"),
        ({"process": {"args": ["x"], "cwd": "rel"}}, "process.cwd"),
        ({"process": {"args": ["x"], "user": {"uid": -1}}}, "process.user.uid"),
        ({"process": {"args": ["x"], "user": {"uid": True}}}, "process.user.uid"),
        ({"process": {"args": ["x"], "user": {"gid": 2**32 - 1}}}, "process.user.gid"),
        ({"process": {"args": ["x"], "user": {"additionalGids": [1, "2"]}}}, "process.user.additionalGids[1]"),
        ({"process": {"args": ["x"], "user": {"umask": 0o1000}}}, "process.user.umask"),
        ({"process": {"args": ["x"], "rlimits": [{"type": "RLIMIT_MAGIC"}]}}, "process.rlimits[0].type"),
        ({"process": {"args": ["x"], "rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]}}, "process.rlimits[0]"),
        ({"process": {"args": ["x"], "oomScoreAdj": 1001}}, "process.oomScoreAdj"),
        ({"process": {"args": ["x"]}, "root": {"readonly": "yes"}}, "root.readonly"),
        ({"process": {"args": ["x"]}, "mounts": [1]}, "mounts[0]"),
        ({"process": {"args": ["x"]}, "mounts": [{"destination": "x", "type": "tmpfs"}]}, "mounts[0].destination"),
        ({"process": {"args": ["x"]}, "mounts": [{"destination": "/..", "type": "tmpfs"}]}, "mounts[0]"),
        (
            {"process": {"args": ["x"]}, "mounts": [{"destination": "/a", "source": "rel", "options": ["bind"]}]},
            "mounts[0].source",
        ),
        ({"process": {"args": ["x"]}, "linux": {"cgroupsPath": 1}}, "linux.cgroupsPath"),
        (
            {"process": {"args": ["x"]}, "linux": {"resources": {"memory": {"limit": "1G"}}}},
            "linux.resources.memory.limit",
        ),
    ],
)
def test_what_is_wrong_is_named(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        plan("/rootfs", spec)
    assert caught.value.field == field
    assert caught.value.message.startswith(field)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    key=st.sampled_from(["args", "env", "cwd", "user", "capabilities", "rlimits", "oomScoreAdj"]),
    value=_json,
    rest=_json,
)
def test_any_value_gives_a_plan_or_a_named_field(key: str, value: Any, rest: Any) -> None:
    spec = {"process": {"args": ["/x"], key: value}, "mounts": rest, "linux": value, "root": rest}
    try:
        planned = plan("/rootfs", spec)
    except InvalidArgument as exc:
        assert exc.field
    else:
        assert planned.argv


# -- open directories --------------------------------------------------------------------------------------------------


def test_the_root_alone() -> None:
    assert preopens(read(), lambda _: True) == [Preopen("/", "/", True)]
    assert preopens(read(root={"readonly": True}), lambda _: True) == [Preopen("/", "/", False)]


def test_the_working_directory_is_the_first_one_and_the_root_comes_after_it() -> None:
    planned = read({"cwd": "/data/sub"}, root={"readonly": True}, mounts=[bind("/data")])
    assert preopens(planned, lambda _: True) == [
        Preopen("/data/sub", ".", True),
        Preopen("/", "/", False),
        Preopen("/data", "/data", True),
    ]


def test_a_prefix_of_a_name_is_not_a_parent() -> None:
    planned = read({"cwd": "/database"}, root={"readonly": True}, mounts=[bind("/data")])
    assert preopens(planned, lambda _: True)[0] == Preopen("/database", ".", False)


def test_files_are_not_opened() -> None:
    planned = read(mounts=[bind("/etc/hosts"), bind("/data", "ro")])
    found = preopens(planned, lambda path: path != "/etc/hosts")
    assert found == [Preopen("/", "/", True), Preopen("/data", "/data", False)]


def test_a_writable_file_in_a_read_only_root_leaves_the_decision_to_the_kernel() -> None:
    planned = read(root={"readonly": True}, mounts=[bind("/log/message")])
    assert preopens(planned, lambda path: path != "/log/message") == [Preopen("/", "/", True)]
    planned = read(root={"readonly": True}, mounts=[bind("/log/message", "ro")])
    assert preopens(planned, lambda path: path != "/log/message") == [Preopen("/", "/", False)]
