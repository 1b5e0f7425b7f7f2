"""The WasmEdge engine with the real program: what it has in common with Wasmtime, and its own ways."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kuasar.core.errors import BackendFailed, InvalidArgument, Unimplemented
from scripts.layout import CHECKOUT
from tests.integration.agent_wasm.conftest import Agent, spec, write

pytestmark = pytest.mark.root
PROGRAM = f"{CHECKOUT}/.kuasar/wasmedge/usr/bin/wasmedge"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent's double with this engine, in place of the usual one."""
    agent = Agent(str(tmp_path_factory.mktemp("cache")), "wasmedge", binary=PROGRAM)
    yield agent
    agent.close()


def alone(cache: Path, **options: str) -> Agent:
    return Agent(str(cache), "wasmedge", **options)


def test_arguments_environment_and_streams(agent: Agent, rootfs: str) -> None:
    # the engine makes the first argument: the name of the file
    assert agent.create(rootfs, spec("/args.wasm", "a b", "", "ü", "--", "-x")).run() == (
        *(0, "args.wasm\0a b\0\0ü\0--\0-x\0".encode(), b""),
    )
    env = {"env": ["A=1", "B=x=y"], "cwd": "/etc"}
    assert agent.create(rootfs, spec("/env.wasm", process=env)).run() == (0, b"A=1\0B=x=y\0PWD=/etc\0", b"")
    assert agent.create(rootfs, spec("/stderr.wasm")).run() == (0, b"to stdout\n", b"to stderr\n")


def test_standard_input_until_its_end(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/cat.wasm"))
    container.start()
    os.write(container.stdin.write, b"first ")
    assert container.stdout.take() == b"first "
    container.stdin.close_write()
    assert (container.stdout.collect(), container.wait()) == (b"", 0)


def test_ten_mebibytes_come_out_whole(agent: Agent, rootfs: str) -> None:
    code, out, _ = agent.create(rootfs, spec("/flood.wasm")).run()
    assert code == 0
    assert out == struct.pack("<2621440I", *range(2621440))


@pytest.mark.parametrize(("given", "code"), [("0", 0), ("42", 42), ("255", 255), ("256", 0)])
def test_the_exit_code_is_the_module_s(agent: Agent, rootfs: str, given: str, code: int) -> None:
    assert agent.create(rootfs, spec("/exit.wasm", given)).run()[0] == code


def test_a_trap_says_what(agent: Agent, rootfs: str) -> None:
    code, out, _ = agent.create(rootfs, spec("/trap.wasm")).run()
    assert code == 134
    assert b"execution failed: unreachable" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_a_signal_ends_a_busy_loop(agent: Agent, rootfs: str, number: signal.Signals) -> None:
    container = agent.create(rootfs, spec("/spin.wasm"))
    container.start()
    assert container.stdout.take() == b"spinning\n"
    os.kill(container.pid, number)
    assert container.wait() == 128 + number


def test_memory_beyond_the_limit_is_refused(agent: Agent, rootfs: str) -> None:
    limits = {"resources": {"memory": {"limit": 64 * MIB}}}
    code, out, err = agent.create(rootfs, spec("/grow.wasm", linux=limits)).run()
    assert (code, err) == (134, b"refused\n")
    assert b"exceeded limited 768 page size" in out
    small = {"resources": {"memory": {"limit": 32 * MIB}}}
    with pytest.raises(InvalidArgument, match="wants 67108864 bytes of memory at its start, which exceeds"):
        agent.create(rootfs, spec("/greedy.wasm", linux=small))
    assert agent.create(rootfs, spec("/greedy.wasm")).run() == (0, b"", b"")


@pytest.mark.parametrize(
    ("args", "kind", "words"),
    [
        ("/foreign.wasm", BackendFailed, "unknown import: `env::launch_rocket`"),
        ("/library.wasm", BackendFailed, "a library, not a command"),
        ("/native", InvalidArgument, "a native program"),
        ("/broken.wasm", BackendFailed, r"/broken\.wasm: loading failed"),
    ],
)
def test_what_cannot_run_is_told_at_create(
    agent: Agent, rootfs: str, args: str, kind: type[Exception], words: str
) -> None:
    write(f"{rootfs}/native", b"\x7fELF\x02\x01\x01\x00 and more")
    write(f"{rootfs}/broken.wasm", b"\0asm\1\0\0\0" + b"\xff" * 100)
    with pytest.raises(kind, match=words):
        agent.create(rootfs, spec(args))


def test_files(agent: Agent, rootfs: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(f"{tmp_path}/data/file", b"of the volume\n")
    os.symlink("/etc", f"{rootfs}/link")
    mounts = [{"destination": "/link/data", "type": "bind", "source": f"{tmp_path}/data", "options": ["rbind", "ro"]}]
    assert agent.create(rootfs, spec("/preopens.wasm", mounts=mounts)).run()[1] == b"/\nlink/data\n"
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/greeting")).run()[1] == b"from the image\n"
    assert agent.create(rootfs, spec("/read.wasm", "4", "file", mounts=mounts)).run()[1] == b"of the volume\n"
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/data/file", mounts=mounts)).run()[1] == b"of the volume\n"
    assert agent.create(rootfs, spec("/write.wasm", "4", "new", mounts=mounts)).run()[0] != 0
    assert agent.create(rootfs, spec("/write.wasm", "3", "new", root={"readonly": True})).run()[0] != 0
    assert agent.create(rootfs, spec("/write.wasm", "3", "new")).run()[0] == 0
    assert Path(rootfs, "new").read_bytes() == b"written\n"
    for path in ("../../../etc/hostname", "/etc/hostname", "../start/read.wasm"):
        assert agent.create(rootfs, spec("/read.wasm", "3", path)).run()[:2] != (0, b"")
    assert sorted(os.listdir(rootfs)) == sorted({*os.listdir(rootfs)} - {".kuasar"})


def test_a_colon_in_a_mount_point_is_named(agent: Agent, rootfs: str, tmp_path: Path) -> None:
    mounts = [{"destination": "/a:b", "type": "bind", "source": str(tmp_path), "options": ["rbind"]}]
    with pytest.raises(InvalidArgument, match=r"mounts\[0\]\.destination: '/a:b'"):
        agent.create(rootfs, spec("/args.wasm", mounts=mounts))


def test_the_user_and_its_file_capabilities_count(agent: Agent, rootfs: str) -> None:
    os.chmod(f"{rootfs}/etc/greeting", 0o600)
    user = {"user": {"uid": 1000, "gid": 1000}}
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/greeting", process=user)).run()[0] != 0
    able = {**user, "capabilities": {"ambient": ["CAP_DAC_OVERRIDE"]}}
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/greeting", process=able)).run()[1] == b"from the image\n"
    os.chown(f"{rootfs}/etc/greeting", 1000, 1000)
    root: dict[str, Any] = {"capabilities": {"effective": []}}
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/greeting", process=root)).run()[0] != 0
    root = {"capabilities": {"effective": ["CAP_DAC_OVERRIDE"]}}
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/greeting", process=root)).run()[0] == 0


def test_the_process_has_no_more_than_it_needs(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/spin.wasm", process={"user": {"uid": 1000, "gid": 1000}}))
    container.start()
    container.stdout.take()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{container.pid}/status").read_text().splitlines())
    assert status["Name"] == "spin.wasm"
    assert status["Uid"].split() == ["1000"] * 4
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert {status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    mounts = [line.split() for line in Path(f"/proc/{container.pid}/mountinfo").read_text().splitlines()]
    flags = {line[4]: line[5].split(",") for line in mounts}
    assert "ro" in flags["/"]
    assert "noexec" in flags["/.kuasar/container"]
    assert all("ro" in flags[path] for path in flags if path != "/.kuasar/container")
    os.kill(container.pid, signal.SIGKILL)
    assert container.wait() == 137


def test_a_module_is_compiled_once_and_without_a_cache_all_the_same(rootfs: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = alone(cache, binary=PROGRAM)
    try:
        assert first.create(rootfs, spec("/args.wasm")).run()[0] == 0
        (compiled,) = cache.glob("wasmedge-0.*/*.cwasm")
        assert compiled.read_bytes().startswith(b"\x7fELF")
        before = compiled.stat().st_ino
        assert first.create(rootfs, spec("/args.wasm")).run()[0] == 0
        assert compiled.stat().st_ino == before
    finally:
        first.close()
    useless = tmp_path / "file"
    useless.write_text("in the way")
    second = alone(useless, binary=PROGRAM)
    try:
        assert second.create(rootfs, spec("/args.wasm")).run()[0] == 0
    finally:
        second.close()


def test_plugins(agent: Agent, rootfs: str) -> None:
    key = "io.kuasar.wasmedge.plugins"
    chosen: dict[str, Any] = {**spec("/args.wasm"), "annotations": {key: "wasi_logging"}}
    assert agent.create(rootfs, chosen).run()[0] == 0
    with pytest.raises(InvalidArgument, match=r"no plug-in wasi_nn \(there are: wasi_logging\)"):
        agent.create(rootfs, {**chosen, "annotations": {key: "wasi_nn"}})
    with pytest.raises(InvalidArgument, match=r"annotation io\.kuasar\.wasmedge\.gas: unknown"):
        agent.create(rootfs, {**chosen, "annotations": {"io.kuasar.wasmedge.gas": "5"}})


def test_exec_says_what_to_do_instead(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/args.wasm"))
    with pytest.raises(Unimplemented, match="WebAssembly") as refused:
        agent.call("exec", "c1")
    assert container.run()[0] == 0
    assert refused.value.data["engine"] == "wasmedge"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/no/such/wasmedge", "/no/such/wasmedge is no program .* `binary`"),
        ("no-such-wasmedge", "there is no program no-such-wasmedge in /"),
        ("/bin/true", "/bin/true is no WasmEdge|/bin/true does not run"),
    ],
)
def test_a_program_that_is_none_is_named(rootfs: str, tmp_path: Path, program: str, words: str) -> None:
    agent = alone(tmp_path / "cache", binary=program)
    try:
        with pytest.raises(BackendFailed, match=words):
            agent.create(rootfs, spec("/args.wasm"))
    finally:
        agent.close()
