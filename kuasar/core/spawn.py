"""The one door for child processes, and the one place that reaps them.

:class:`Children` belongs to a process's loop and lives as long as it. It starts programs by ``posix_spawn`` (no fork of
this process, safe beside threads), each in a process group of its own, with standard input from /dev/null unless given,
a minimal explicit environment and only the descriptors that are named. It reaps every child on SIGCHLD, orphans
included, so that it also serves as the reaper of a PID 1.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kuasar.core import log
from kuasar.core.aio import Future, Loop
from kuasar.core.errors import BackendFailed
from kuasar.core.spans import span

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MINIMAL_ENV: Mapping[str, str] = {"PATH": PATH, "LANG": "C.UTF-8"}
_MAX_OUTPUT = 256 * 1024
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXFSZ)


@dataclass(frozen=True)
class Exit:
    """How a process ended: ``code`` for an exit, ``signal`` for a death by signal (the other one is 0)."""

    code: int
    signal: int = 0

    @classmethod
    def from_wait_status(cls, status: int) -> Exit:
        """Decode what ``waitpid`` returned."""
        if os.WIFSIGNALED(status):
            return cls(0, os.WTERMSIG(status))
        return cls(os.WEXITSTATUS(status))

    @property
    def shell_code(self) -> int:
        """The exit code as containerd reports it: 128+n for signal n."""
        return 128 + self.signal if self.signal else self.code

    @property
    def words(self) -> str:
        """For messages: ``exited with 3``, ``killed by SIGKILL``."""
        if not self.signal:
            return f"exited with {self.code}"
        try:
            return f"killed by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"killed by signal {self.signal}"


@dataclass(frozen=True)
class Completed:
    """A finished :meth:`Children.run`."""

    argv: tuple[str, ...]
    exit: Exit
    output: bytes
    """Standard output and error together, cut after 256 KiB."""


class Children:
    """All child processes of this process. One per loop; installs the SIGCHLD wake-up."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._claims: dict[int, Future[Exit]] = {}
        self._orphans: dict[int, Exit] = {}
        self._keeping = 0
        self.on_orphan: Callable[[int], None] = lambda _: None
        """Called within :meth:`keeping_orphans` with the number of an unknown process that has ended, before it is
        reaped: the last moment at which something can be asked about it."""
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        loop.add_reader(self._wake_r, self._on_wake)

    def close(self) -> None:
        """Stop reaping; children stay."""
        signal.set_wakeup_fd(-1)
        self._loop.remove_reader(self._wake_r)
        os.close(self._wake_r)
        os.close(self._wake_w)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] = MINIMAL_ENV,
        pass_fds: Mapping[int, int] | None = None,
        new_session: bool = False,
    ) -> tuple[int, Future[Exit]]:
        """Start ``argv`` and give its pid and the future of its end.

        The standard descriptors default to /dev/null; ``pass_fds`` maps the child's number to one of ours (the caller
        keeps its own). Raises :class:`BackendFailed` when the program cannot be started.
        """
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            wanted = {0: null if stdin is None else stdin, 1: null if stdout is None else stdout}
            wanted |= {2: null if stderr is None else stderr, **(pass_fds or {})}
            pid = self._posix_spawn(argv, env, _without_overlap(wanted), new_session)
        except OSError as exc:
            raise BackendFailed(f"cannot start {argv[0]}: {exc.strerror}", errno=exc.errno) from exc
        finally:
            os.close(null)
        if log.enabled("debug"):
            import shlex  # costs a guest's PID 1 memory for nothing otherwise

            log.debug("spawned", pid=pid, argv=shlex.join(argv))
        self._orphans.pop(pid, None)  # an earlier process of the same number
        return pid, self.claim(pid)

    def _posix_spawn(self, argv: Sequence[str], env: Mapping[str, str], actions: list[Any], new_session: bool) -> int:
        search = os.posix_spawn if "/" in argv[0] else os.posix_spawnp
        group: dict[str, Any] = {"setsid": True} if new_session else {"setpgroup": 0}
        return search(
            argv[0], list(argv), dict(env), file_actions=actions, setsigmask=[], setsigdef=_DEFAULT_SIGNALS, **group
        )

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        env: Mapping[str, str] = MINIMAL_ENV,
        deadline: float | None = None,
        pass_fds: Mapping[int, int] | None = None,
    ) -> Completed:
        """Run ``argv`` to its end and collect its output; at ``deadline`` it is killed and DeadlineExceeded raised."""
        with span(f"run {os.path.basename(argv[0])}"):
            return await self._run(argv, stdin, env, deadline, pass_fds)

    async def _run(
        self,
        argv: Sequence[str],
        stdin: int | None,
        env: Mapping[str, str],
        deadline: float | None,
        pass_fds: Mapping[int, int] | None,
    ) -> Completed:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_end, False)
        chunks: list[bytes] = []
        try:
            try:
                pid, ended = self.spawn(
                    argv, stdin=stdin, stdout=write_end, stderr=write_end, env=env, pass_fds=pass_fds
                )
            finally:
                os.close(write_end)
            self._loop.add_reader(read_end, lambda: self._collect(read_end, chunks))
            try:
                status = await self._loop.wait_for(ended, deadline, f"{os.path.basename(argv[0])} {argv[1:2]}")
            except BaseException:
                if not ended.done:
                    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still this child's
                raise
            self._collect(read_end, chunks)
            return Completed(tuple(argv), status, b"".join(chunks))
        finally:
            self._loop.remove_reader(read_end)
            os.close(read_end)

    def _collect(self, fd: int, chunks: list[bytes]) -> None:
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            if not data:
                self._loop.remove_reader(fd)
                return
            if sum(map(len, chunks)) < _MAX_OUTPUT:
                chunks.append(data)

    def claim(self, pid: int) -> Future[Exit]:
        """The future of the end of ``pid``: a child, or an orphan that is or will be ours to reap."""
        future = self._claims.get(pid)
        if future is None:
            future = self._claims[pid] = Future(self._loop)
            early = self._orphans.pop(pid, None)
            if early is not None:
                del self._claims[pid]
                future.set_result(early)
        return future

    @contextmanager
    def keeping_orphans(self) -> Iterator[None]:
        """While entered, the ends of unknown processes are kept for a later :meth:`claim`.

        For programs that start a process, leave it to us and tell its number afterwards (``runc --pid-file``): it may
        have ended before we know it.
        """
        self._keeping += 1
        try:
            yield
        finally:
            self._keeping -= 1
            if not self._keeping:
                self._orphans.clear()

    def _on_wake(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_r, 4096)
        self.reap()

    def _next_dead(self) -> int:
        """The number of a child that has ended and is still there; 0 if there is none."""
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return 0
        if self._keeping and found.si_pid not in self._claims:
            self.on_orphan(found.si_pid)
        return found.si_pid

    def reap(self) -> None:
        """Reap everything that has ended."""
        while True:
            try:
                pid = self._next_dead()
                if not pid:
                    return
                _, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                return
            ended = Exit.from_wait_status(status)
            claim = self._claims.pop(pid, None)
            if claim is not None:
                claim.set_result(ended)
            elif self._keeping:
                self._orphans[pid] = ended


def _without_overlap(wanted: Mapping[int, int]) -> list[Any]:
    """dup2 actions that are right even where a source number is another one's target (they run one after the other)."""
    actions: list[Any] = []
    spare = max([*wanted, *wanted.values()]) + 1
    moved: dict[int, int] = {}
    for source in set(wanted.values()):
        if source in wanted:
            actions.append((os.POSIX_SPAWN_DUP2, source, spare))
            moved[source] = spare
            spare += 1
    actions += [(os.POSIX_SPAWN_DUP2, moved.get(source, source), target) for target, source in wanted.items()]
    actions += [(os.POSIX_SPAWN_CLOSE, copy) for copy in moved.values()]
    return actions
