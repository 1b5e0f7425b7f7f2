"""What the forked process of a container does, from the fork to its end, and how it tells the agent.

::

    forked -> (descriptors, mount namespace, module compiled and linked, cgroup, root, user) -> ready
    ready -> start byte -> module runs -> exit with its code
    anything fails before ready -> error to the agent -> exit
    the agent's end closed before the start byte -> exit

The channel is a SOCK_SEQPACKET pair: one msgpack message up (``{"note"}``, or ``{"error"}`` in its wire form), one byte
down. The engine is imported with the driver (wasmtime takes 75 ms and starts no threads), so that no container has to
do it: none of its agent's, and, when the zygote has it in its list, none at all.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import termios
from dataclasses import dataclass, replace
from typing import NoReturn

import msgpack

from kuasar.agent.drivers.wasm import engine as engines
from kuasar.agent.drivers.wasm import plan as plans
from kuasar.agent.drivers.wasm import privileges, rootfs, seccomp
from kuasar.agent.drivers.wasm import syscalls as sys
from kuasar.core import cgroup
from kuasar.core.errors import BackendFailed, InvalidArgument, wrap

START = b"s"
MAX_MESSAGE = 64 * 1024
_MAX_WORDS = 4096
_CHANNEL = 3
_EXIT_FAILED = 1
_HANDLED = frozenset(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
"""Whatever Python or the agent may have handled or ignored; the real-time signals they leave alone."""


@dataclass(frozen=True)
class Launch:
    """What a process is started with. The descriptors stay the caller's."""

    plan: plans.Plan
    engine: engines.Engine
    stdio: tuple[int, int, int]
    terminal: bool
    channel: int
    cgroup: str
    """Path of the container's cgroup; empty for none."""


def fork(launch: Launch) -> int:
    """Fork the process of a container and give its pid. The calling process must have one thread only."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _main(launch)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def _main(launch: Launch) -> NoReturn:
    """Never returns: above this frame is the agent's code, which must not run in the child."""
    code = _EXIT_FAILED
    try:
        gc.disable()  # no destructor of the agent's objects may close a descriptor of ours
        _reset_signals()
        _arrange_descriptors(launch)
        try:
            program = _prepare(launch)
        except Exception as exc:
            error = wrap(exc, "cannot make the container's process")
            error.message = error.message[:_MAX_WORDS]  # it may quote arguments, which have no bound
            os.write(_CHANNEL, msgpack.packb({"error": error.to_wire()}))
        else:
            os.write(_CHANNEL, msgpack.packb({"note": program.note}))
            started = os.read(_CHANNEL, 1) == START
            os.close(_CHANNEL)
            if started:
                code = program.run()
    finally:
        os._exit(code)


def _prepare(launch: Launch) -> engines.Program:
    """Everything up to, but not including, the first instruction of the module."""
    plan, engine = launch.plan, launch.engine
    rootfs.build(plan)
    fd, name = rootfs.open_module(plan)
    sys.set_command_line(os.path.basename(name), "\0".join(plan.argv).encode())
    program = engine.load(fd, name, plan)
    os.close(fd)
    if launch.cgroup:  # not earlier: compiling is not the container's doing, and its limits might not allow it
        cgroup.enter_alone(launch.cgroup)
    privileges.set_oom_score(plan)
    privileges.require_one_thread()
    with rootfs.inside(plan.rootfs):
        wanted = [replace(each, path=os.path.realpath(each.path)) for each in plans.preopens(plan, os.path.isdir)]
    program.furnish(plan)
    rootfs.enter(plan.rootfs)
    privileges.set_limits(plan)
    privileges.drop(plan, engine.executes)
    seccomp.install(engine.executes, engine.sockets)
    wanted = [replace(each, path=program.prefix + each.path) for each in wanted]
    program.prepare(plan, _accessible(plan, wanted))
    return program


def _accessible(plan: plans.Plan, wanted: list[plans.Preopen]) -> list[plans.Preopen]:
    """The directories to open, without mounts that the container's user may not read."""
    found = []
    for preopen in wanted:
        try:
            os.close(os.open(preopen.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as exc:
            if preopen.name == "/":
                raise BackendFailed(f"user {plan.uid} cannot read the image's root directory: {exc.strerror}") from exc
            if preopen.name == ".":
                words = f"process.cwd: user {plan.uid} cannot enter {preopen.path}: {exc.strerror}"
                raise InvalidArgument(words, field="process.cwd") from exc
            continue  # through "/" the module gets the kernel's own answer
        found.append(preopen)
    return found


def _reset_signals() -> None:
    """Default dispositions, nothing blocked. SIGPIPE stays ignored: WASI reports a broken pipe as an error."""
    signal.set_wakeup_fd(-1)
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _arrange_descriptors(launch: Launch) -> None:
    """0, 1, 2 and the channel at 3, nothing else of the agent's."""
    wanted = (*launch.stdio, launch.channel)
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in wanted]  # away from the numbers to be filled
    for target, fd in enumerate(spare):
        os.dup2(fd, target, inheritable=False)
    os.closerange(_CHANNEL + 1, os.sysconf("SC_OPEN_MAX"))
    os.setsid()
    if launch.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    else:
        for fd in range(3):
            os.set_blocking(fd, True)  # a FIFO may have been opened otherwise; the module would see EAGAIN
