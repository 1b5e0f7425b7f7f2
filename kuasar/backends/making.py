"""What the makers of templates have in common: command, host, one at a time for each template, last words."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from kuasar.backends.base import HERE, ROOT, AgentProcess, Place, User
from kuasar.backends.template import Templates
from kuasar.core import log
from kuasar.core.aio import Loop
from kuasar.core.config import ConfigError, Engine, load
from kuasar.core.errors import BackendFailed, KuasarError
from kuasar.core.spawn import Children, Completed

Say = Callable[[str], None]


class MakerHost:
    """The :class:`kuasar.backends.base.Host` of a machine that belongs to no sandbox: its process is our child and ends
    with us, nothing is recorded."""

    def __init__(self, loop: Loop, directory: str) -> None:
        self.loop = loop
        self.directory = self.state_dir = self.log_dir = directory
        self.config_path = self.engine = ""
        self.machine: Mapping[str, Any] = {}
        self._children = Children(loop)

    def remember(self, **facts: Any) -> None:
        self.machine = {**self.machine, **facts}

    def acquiring(self, kind: str, name: str) -> None:
        """Everything is in our directory."""

    def released(self, kind: str, name: str) -> None:
        """As above."""

    def holdings(self) -> Sequence[tuple[str, str]]:
        return ()

    def lap(self, phase: str) -> None:
        log.info("phase", name=phase)

    def keep(self, name: str, make: Callable[[], int]) -> int:
        return make()

    async def run(self, argv: Sequence[str], deadline: float | None) -> Completed:
        return await self._children.run(argv, deadline=deadline)

    def start_agent(self, args: dict[str, Any], listen_fd: int, log_fd: int, flags: int) -> AgentProcess:
        raise BackendFailed("the maker of templates starts no agents")

    def start_program(
        self,
        argv: Sequence[str],
        log_fd: int,
        fds: Sequence[int] = (),
        cgroup: str = "",
        user: User = ROOT,
        place: Place = HERE,
    ) -> AgentProcess:
        wish = {"uid": user.uid, "gid": user.gid, "groups": list(user.groups), "cgroup": cgroup}
        wish |= {"netns": place.netns, "directory": place.directory}
        program = {**wish, "argv": list(argv), "descriptors": 3 + len(fds), "parent": os.getpid()}
        launcher = [sys.executable, "-m", "kuasar.supervisor.program", json.dumps(program)]
        numbered = {3 + index: fd for index, fd in enumerate(fds)}
        pid, _ = self._children.spawn(launcher, stdout=log_fd, stderr=log_fd, pass_fds=numbered)
        return _Child(pid)

    def close(self) -> None:
        """Reap no more children; those that are left stay."""
        self._children.close()


class _Child:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def commit(self) -> None:
        """It runs already."""

    def abort(self) -> None:
        """Its owner ends it."""


@contextmanager
def at_work(loop: Loop, settings: Engine) -> Iterator[tuple[MakerHost, Templates]]:
    """A host with a directory of its own, which goes, and the templates of the engine."""
    with (
        tempfile.TemporaryDirectory(prefix="kuasar-template-") as directory,
        closing(MakerHost(loop, directory)) as host,
    ):
        yield host, Templates(f"{settings.cache_dir}/templates", f"{directory}/verified")


async def make_once(templates: Templates, key: str, say: Say, make: Callable[[], Awaitable[None]]) -> None:
    """Have the template of ``key`` made if there is none; at once if another process is at it. What nobody has used
    for long goes."""
    os.makedirs(templates.directory, mode=0o700, exist_ok=True)
    with open(f"{templates.directory}/{key}.lock", "w", encoding="ascii") as lock:  # noqa: ASYNC230 - a local file
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"template {key} is being made by another process")
            return
        for name in templates.prune():
            say(f"removed {name}, which nobody used")
        if templates.find(key) is None:
            await make()
    say(f"template {key} is there")


def last_lines(paths: tuple[str, str]) -> str:
    """The ends of a machine's log and console."""
    found = []
    for path in paths:
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                found += [line.strip() for line in file.read().splitlines() if line.strip()][-5:]
    return " | ".join(found)


def command(
    argv: Sequence[str] | None, module: str, kind: str, make: Callable[[Loop, Engine, Say], Awaitable[str]]
) -> int:
    """``python -m <module>``: exits with 0 (the template is there, or being made), 1 (it could not be made; the reason
    is on standard error), 2 (usage)."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=f"Make the template of {kind} machines.")
    parser.add_argument("--config", help="configuration file (default: /etc/kuasar/kuasar.toml)")
    parser.add_argument("--engine", default=kind, help=f"name of the engine in the configuration (default: {kind})")
    options = parser.parse_args(argv)
    started = time.monotonic()

    def say(step: str) -> None:
        print(f"==> [{time.monotonic() - started:5.1f} s] {step}", file=sys.stderr, flush=True)

    try:
        config = load(options.config)
        settings = config.engine(options.engine)
        log.configure(config.log_level, form=config.log_format, maker=options.engine)
        loop = Loop()
        loop.run(_run(make, loop, settings, say))
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        return 2
    except KuasarError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


async def _run(make: Callable[[Loop, Engine, Say], Awaitable[str]], loop: Loop, settings: Engine, say: Say) -> None:
    await make(loop, settings, say)
