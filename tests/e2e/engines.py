"""The engines the suite runs on: one line each. What an engine can do is declared here; nothing is found out by trying.

A test names the capabilities it needs (`@needs(TTY)`) and is skipped on engines that do not declare them. Programs are
what tests run: each engine has its way to idle, to end with a code and to write known bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from kuasar.cli import images
from tests.standins.quark_host import quark_host

SHELL = "shell"  # runs Linux programs, a shell among them, under the security settings of the pod
EXEC = "exec"
TTY = "tty"
PAUSE = "pause"
UPDATE = "update"
STATS = "stats"
SHARED_KERNEL = "shared-kernel"  # processes of containers are processes of the host, in its cgroups
HOST_NETWORK = "host-network"
HOST_PID = "host-pid"
HOST_IPC = "host-ipc"
SHARED_PID = "shared-pid"
DEVICES = "devices"
BOUNDED_DRAIN = "bounded-drain"  # an exec ends with its process, though a grandchild keeps its output open
BIDIRECTIONAL = "bidirectional"  # mount propagation from the container to the host
TTY_NAME = "tty-name"  # the terminal has a name in /dev/pts
PAUSE_ONE = "pause-one"  # pausing a container leaves its neighbours running
OWN_LIMITS = "own-limits"  # each container has limits of its own, not the pod as a whole
MESSAGE_QUEUES = "message-queues"  # containers of a pod see each other's POSIX message queues
LINUX_DETAILS = "linux-details"  # all of Linux: kinds of interfaces, sysctls, seccomp of execs, all below /proc
WASM = "wasm"
PLUGINS = "plugins"  # a pod's annotation chooses plug-ins of the engine
RELAYED = "relayed"  # the worker stands between the streams and the agent, which cannot open containerd's FIFOs
OWN_KERNEL = "own-kernel"  # a pod is a machine
SHARED_FILES = "shared-files"  # directories of the host are seen as they are now, and can be written
OURS = "ours"  # goes through our gateway, workers and supervisord

BUSYBOX = images.BUSYBOX
WASM_MODULES = "localhost/kuasar-e2e/wasm:1"


class Programs(Protocol):
    """Commands with a known effect, in the image of the engine."""

    def idle(self) -> Sequence[str]:
        """Runs, without using the processor, until it is killed."""

    def exit(self, code: int) -> Sequence[str]:
        """Ends at once with `code`."""

    def say(self, words: str) -> tuple[Sequence[str], bytes]:
        """Writes something that contains `words` and ends with 0: the command and the bytes."""

    def flood(self) -> tuple[Sequence[str], bytes]:
        """Writes 10 MiB to stdout and ends with 0: the command and the bytes."""

    def spin(self) -> Sequence[str]:
        """Keeps a processor busy until it is killed."""

    def hog(self) -> Sequence[str]:
        """Takes memory until it is refused or killed."""

    def hold(self) -> Sequence[str]:
        """Takes 32 MiB, writes "ready" and idles."""


class LinuxPrograms:
    """Busybox."""

    def idle(self) -> Sequence[str]:
        return ["sleep", "3600"]

    def exit(self, code: int) -> Sequence[str]:
        return ["sh", "-c", f"exit {code}"]

    def say(self, words: str) -> tuple[Sequence[str], bytes]:
        return ["echo", words], words.encode() + b"\n"

    def flood(self) -> tuple[Sequence[str], bytes]:
        lines = 10 * 1024 * 1024 // 64
        program = 'BEGIN { for (i = 0; i < N; i++) printf "%063d\\n", i }'
        return ["awk", "-v", f"N={lines}", program], b"".join(b"%063d\n" % i for i in range(lines))

    def spin(self) -> Sequence[str]:
        return ["sh", "-c", "echo spinning; while :; do :; done"]

    def hog(self) -> Sequence[str]:
        return ["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"]

    def hold(self) -> Sequence[str]:
        return ["sh", "-c", "x=$(head -c 33554432 /dev/zero | tr '\\0' x); echo ready; sleep 3600; :"]


@dataclass(frozen=True)
class WasmPrograms:
    """The modules of tests/wasm and tests/e2e/modules, each at the root of the image; how engines differ on them."""

    own_name: bytes = b"/args.wasm"
    """What args.wasm sees as its first argument."""
    words_go_to: str = "stderr"
    """Where the engine says why it ended a module."""
    trap_words: tuple[bytes, ...] = (b"/trap.wasm trapped", b"unreachable", b"give_up")
    """What it says of trap.wasm."""

    def idle(self) -> Sequence[str]:
        return ["/idle.wasm"]

    def exit(self, code: int) -> Sequence[str]:
        return ["/exit.wasm", str(code)]

    def say(self, words: str) -> tuple[Sequence[str], bytes]:
        return ["/args.wasm", words], self.own_name + b"\0" + words.encode() + b"\0"

    def flood(self) -> tuple[Sequence[str], bytes]:
        # containerd's log has no ends of lines, be they LF or CR LF: a CR that happens to stand there is lost
        return ["/flood.wasm"], struct.pack("<2621440I", *range(2621440)).replace(b"\r\n", b"\n")

    def spin(self) -> Sequence[str]:
        return ["/spin.wasm"]

    def hog(self) -> Sequence[str]:
        return ["/grow.wasm"]

    def hold(self) -> Sequence[str]:
        return ["/hold.wasm"]


BRIEF = frozenset(
    {
        "test_machines",
        "test_ends",
        "test_lifecycle",
        "test_exec",
        "test_network",
        "test_volumes",
        "test_resources",
        "test_failures",
    }
)
"""What is run of an engine that is slow when no engine was chosen; `ENGINE=name` runs everything."""


@dataclass(frozen=True)
class Engine:
    """One runtime handler of containerd."""

    handler: str
    image: str
    programs: Programs
    capabilities: frozenset[str]
    patience: float = 1.0
    """How many times longer than elsewhere things may take."""
    pods_in_a_row: int = 100
    pods_at_once: int = 16
    brief: bool = False
    """Whether a run of all engines leaves it to the files of `BRIEF`: the whole suite takes it too long."""

    host: Callable[[], AbstractContextManager[None]] = nullcontext
    """What the engine needs on the host, while a test runs."""

    def can(self, capability: str) -> bool:
        """Whether the engine declares `capability`."""
        return capability in self.capabilities


_EACH = frozenset({TTY_NAME, PAUSE_ONE, OWN_LIMITS, MESSAGE_QUEUES, LINUX_DETAILS})
_LINUX = _EACH | frozenset(
    {
        SHARED_FILES,
        SHARED_KERNEL,
        SHELL,
        EXEC,
        TTY,
        PAUSE,
        UPDATE,
        STATS,
        HOST_NETWORK,
        HOST_PID,
        HOST_IPC,
        SHARED_PID,
        DEVICES,
    }
)
_GVISOR = frozenset({SHARED_FILES, SHELL, EXEC, TTY, PAUSE, UPDATE, STATS, HOST_NETWORK})
_QUARK = frozenset({SHARED_FILES, SHELL, EXEC, UPDATE, HOST_NETWORK})
_WASM = frozenset({SHARED_KERNEL, WASM, PAUSE, PAUSE_ONE, UPDATE, STATS, HOST_NETWORK})
_MACHINE = _EACH | frozenset({SHARED_FILES, SHELL, EXEC, TTY, PAUSE, UPDATE, STATS, SHARED_PID, RELAYED, OWN_KERNEL})
# a stand-in, whose guest is no kernel of its own
_FIRECRACKER = _EACH | frozenset({SHELL, EXEC, TTY, PAUSE, UPDATE, STATS, SHARED_PID, RELAYED})
_STRATOVIRT = _FIRECRACKER | {SHARED_FILES}
_WASMEDGE_PROGRAMS = WasmPrograms(b"args.wasm", "stdout", (b"execution failed", b"unreachable", b"_start"))

ENGINES = {
    engine.handler: engine
    for engine in (
        Engine("kuasar-runc", BUSYBOX, LinuxPrograms(), _LINUX | {OURS, BOUNDED_DRAIN}),
        Engine("kuasar-wasmtime", WASM_MODULES, WasmPrograms(), _WASM | {OURS}),
        Engine("kuasar-qemu", BUSYBOX, LinuxPrograms(), _MACHINE | {OURS, BOUNDED_DRAIN}, 8.0, 30, 10, True),
        Engine("kuasar-clh", BUSYBOX, LinuxPrograms(), _STRATOVIRT | {OURS, BOUNDED_DRAIN}, 4.0, 30, 8, True),
        Engine("kuasar-firecracker", BUSYBOX, LinuxPrograms(), _FIRECRACKER | {OURS, BOUNDED_DRAIN}, 4.0, 20, 6, True),
        Engine("kuasar-stratovirt", BUSYBOX, LinuxPrograms(), _STRATOVIRT | {OURS, BOUNDED_DRAIN}, 4.0, 30, 8, True),
        Engine("kuasar-wasmedge", WASM_MODULES, _WASMEDGE_PROGRAMS, _WASM | {OURS, PLUGINS}),
        Engine("kuasar-gvisor", BUSYBOX, LinuxPrograms(), _GVISOR | {OURS, BOUNDED_DRAIN}, 3.0, 30, 8, True),
        # a stand-in for the program (tests/standins/quark.py): there is none here that runs a guest
        Engine("kuasar-quark", BUSYBOX, LinuxPrograms(), _QUARK | {OURS, BOUNDED_DRAIN}, 2.0, 30, 8, True, quark_host),
        # containerd's own shim: what the tests are proved against, and compared with
        Engine("runc", BUSYBOX, LinuxPrograms(), _LINUX | {BIDIRECTIONAL}),
    )
}


def chosen_engines(wanted: str) -> list[Engine]:
    """The engines named in `wanted` (commas between them), or all of ours."""
    if not wanted:
        return [engine for engine in ENGINES.values() if engine.can(OURS)]
    names = [name.strip() for name in wanted.split(",")]
    unknown = [name for name in names if name not in ENGINES]
    if unknown:
        raise ValueError(f"ENGINE: unknown {', '.join(unknown)} (there are: {', '.join(ENGINES)})")
    return [ENGINES[name] for name in names]
