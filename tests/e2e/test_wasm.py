"""What only WebAssembly containers have: modules as programs, WASI as their system, and the limits of both."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest

from kuasar.api.gen.cri.v1.common_pb2 import LinuxContainerResources
from kuasar.api.gen.cri.v1.container_pb2 import Mount
from kuasar.cli.cri import CriError, bind
from tests.e2e.engines import PLUGINS, WASM, WasmPrograms
from tests.e2e.harness import Node, Pod

pytestmark = pytest.mark.needs(WASM)

ROOT = "3"  # the first directory that a module finds open is its root
NOT_PERMITTED = (
    63,
    69,
    76,
    29,
)  # WASI's numbers for EPERM, EROFS and ENOTCAPABLE; wasmtime makes EIO of the host's EROFS


def programs_of(pod: Pod) -> WasmPrograms:
    """What is known of the engine's ways."""
    assert isinstance(pod.engine.programs, WasmPrograms)
    return pod.engine.programs


def descriptor_of(pod: Pod, directory: str, mounts: list[Mount]) -> str:
    """Under which descriptor a module finds a directory open."""
    container = pod.run(["/preopens.wasm"], "preopens", mounts=mounts)
    assert container.wait().exit_code == 0
    name = directory.lstrip("/")  # with or without: libraries of languages take both
    names = [each.lstrip("/") for each in container.wait_for_log(f"{name}\n".encode()).decode().split("\n")]
    return str(int(ROOT) + names.index(name))


def test_entrypoint_of_the_image(pod: Pod) -> None:
    container = pod.run([])
    assert container.wait().exit_code == 0
    container.wait_for_log(programs_of(pod).own_name + b"\0")


def test_arguments(pod: Pod) -> None:
    container = pod.run(["/args.wasm", "one", "two words", "-x"])
    assert container.wait().exit_code == 0
    container.wait_for_log(programs_of(pod).own_name + b"\0one\0two words\0-x\0")


def test_arguments_for_the_entrypoint_of_the_image(pod: Pod) -> None:
    container = pod.run([], args=["one"])
    assert container.wait().exit_code == 0
    container.wait_for_log(programs_of(pod).own_name + b"\0one\0")


def test_environment(pod: Pod) -> None:
    container = pod.run(["/env.wasm"], env={"COLOUR": "blue", "EMPTY": ""})
    assert container.wait().exit_code == 0
    seen = container.wait_for_log(b"COLOUR=").split(b"\0")
    assert {b"COLOUR=blue", b"EMPTY=", b"FROM_IMAGE=yes"} <= set(seen)


def test_stdin(pod: Pod) -> None:
    container = pod.run(["/cat.wasm"], stdin=True, stdin_once=True)
    with container.attach(stdin=True) as stream:
        stream.send_stdin(b"in and out\n")
        stream.read_until(b"in and out\n")
    assert container.wait().exit_code == 0
    container.wait_for_log(b"in and out\n")


def test_terminal(pod: Pod) -> None:
    container = pod.run(["/cat.wasm"], tty=True, stdin=True)
    with container.attach(tty=True, stdin=True) as stream:
        stream.send_stdin(b"typed\n")
        stream.read_until(b"typed\r\n")  # the terminal's echo
        stream.read_until(b"typed\r\n")  # the module's answer
        stream.send_stdin(b"\x04")
        stream.wait()
    assert container.wait().exit_code == 0


def test_without_stdin(pod: Pod) -> None:
    assert pod.run(["/cat.wasm"]).wait().exit_code == 0


def test_both_streams(pod: Pod) -> None:
    container = pod.run(["/stderr.wasm"])
    assert container.wait().exit_code == 0
    assert container.wait_for_log(b"to stdout\n") == b"to stdout\n"
    assert container.wait_for_log(b"to stderr\n", "stderr") == b"to stderr\n"


@pytest.mark.parametrize("code", [1, 42, 126, 127, 137, 255])
def test_exit_codes(pod: Pod, code: int) -> None:
    assert pod.run(["/exit.wasm", str(code)]).wait().exit_code == code


def test_files_of_the_image_can_be_read_and_written(pod: Pod) -> None:
    container = pod.run(["/read.wasm", ROOT, "data/greeting"], "reads")
    assert container.wait().exit_code == 0
    container.wait_for_log(b"hello from the image\n")
    assert pod.run(["/write.wasm", ROOT, "data/new"], "writes").wait().exit_code == 0


def test_read_only_root(pod: Pod) -> None:
    container = pod.run(["/write.wasm", ROOT, "data/new"], readonly_rootfs=True)
    assert container.wait().exit_code in NOT_PERMITTED


def test_writable_volume(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "from-host").write_bytes(b"from the host\n")
    mounts = [bind(str(tmp_path), "/volume")]
    volume = descriptor_of(pod, "/volume", mounts)
    reads = pod.run(["/read.wasm", volume, "from-host"], "reads", mounts=mounts)
    assert reads.wait().exit_code == 0
    reads.wait_for_log(b"from the host\n")
    assert pod.run(["/write.wasm", volume, "from-module"], "writes", mounts=mounts).wait().exit_code == 0
    assert (tmp_path / "from-module").read_bytes() == b"written\n"


def test_read_only_volume(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "from-host").write_bytes(b"from the host\n")
    mounts = [bind(str(tmp_path), "/volume", readonly=True)]
    reads = pod.run(["/read.wasm", ROOT, "volume/from-host"], "reads", mounts=mounts)
    assert reads.wait().exit_code == 0
    reads.wait_for_log(b"from the host\n")
    writes = pod.run(["/write.wasm", ROOT, "volume/from-module"], "writes", mounts=mounts)
    assert writes.wait().exit_code in NOT_PERMITTED
    volume = descriptor_of(pod, "/volume", mounts)
    writes = pod.run(["/write.wasm", volume, "from-module"], "writes", mounts=mounts)
    assert writes.wait().exit_code in NOT_PERMITTED
    assert not (tmp_path / "from-module").exists()


def test_host_files_are_out_of_reach(pod: Pod) -> None:
    for path in ("../../etc/hostname", "/etc/passwd", "proc/1/environ"):
        container = pod.run(["/read.wasm", ROOT, path], f"reads-{abs(hash(path))}")
        assert container.wait().exit_code != 0
        assert container.log() == b""


def test_memory_limit(pod: Pod) -> None:
    limit = LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    container = pod.run(["/grow.wasm"], resources=limit)
    assert container.wait().exit_code == 134
    container.wait_for_log(b"refused\n", "stderr")
    programs = programs_of(pod)
    assert b"memory" in container.wait_for_log(b"unreachable", programs.words_go_to).lower()
    assert pod.ready


def test_a_module_that_wants_more_than_its_limit_at_once(pod: Pod) -> None:
    limit = LinuxContainerResources(memory_limit_in_bytes=32 << 20)
    with pytest.raises(CriError, match=r"(?i)memory"):
        container = pod.run(["/greedy.wasm"], resources=limit)
        # told at the start or, at the latest, in its log
        assert container.wait().exit_code != 0
        raise CriError(grpc.StatusCode.UNKNOWN, container.log("stderr").decode())


def test_a_busy_module_is_killed_at_once(pod: Pod) -> None:
    container = pod.run(["/spin.wasm"])
    container.wait_for_log(b"spinning\n")
    started = time.monotonic()
    container.stop(grace=30)
    assert time.monotonic() - started < 3  # TERM is enough
    assert container.status().exit_code == 143


def test_a_trap_is_explained_in_the_log(pod: Pod) -> None:
    container = pod.run(["/trap.wasm"])
    assert container.wait().exit_code == 134
    for words in programs_of(pod).trap_words:
        container.wait_for_log(words, programs_of(pod).words_go_to)


@pytest.mark.parametrize(
    ("module", "words"),
    [("/broken.wasm", "broken.wasm"), ("/foreign.wasm", "launch_rocket"), ("/library.wasm", "_start")],
)
def test_modules_that_cannot_run_are_refused_with_the_reason(pod: Pod, module: str, words: str) -> None:
    with pytest.raises(CriError, match=words):
        pod.run([module])
    assert pod.run_idle("after").running()


@pytest.mark.needs(PLUGINS)
def test_plug_ins_are_chosen_by_annotation(node: Node) -> None:
    key = "io.kuasar.wasmedge.plugins"
    assert node.pod("chosen", annotations={key: "wasi_logging"}).run(["/args.wasm"]).wait().exit_code == 0
    pod = node.pod("unknown", annotations={key: "wasi_nonsense"})
    with pytest.raises(CriError, match=r"no plug-in wasi_nonsense \(there are: .*wasi_logging"):
        pod.run(["/args.wasm"])


def test_exec_is_refused_with_a_reason(pod: Pod) -> None:
    container = pod.run_idle()
    with pytest.raises(CriError, match=r"(?i)WebAssembly") as refused:
        container.exec("ls")
    assert "exec" in refused.value.message
    assert "logs" in refused.value.message  # says what to do instead
    assert container.running()


def test_modules_and_idle_neighbours_are_separate(pod: Pod) -> None:
    busy, idle = pod.run(["/spin.wasm"], "busy"), pod.run_idle("idle")
    busy.stop()
    assert busy.status().exit_code == 137
    assert idle.running()


def test_compiled_modules_are_kept(pod: Pod) -> None:
    """The second start of a module finds its compiled form."""
    cache = Path(pod.stack.layout.data) / "cache"
    assert pod.run(["/args.wasm"], "first").wait().exit_code == 0
    before = {path for path in cache.rglob("*") if path.is_file()}
    assert before
    assert pod.run(["/args.wasm"], "second").wait().exit_code == 0
    assert {path for path in cache.rglob("*") if path.is_file()} == before
