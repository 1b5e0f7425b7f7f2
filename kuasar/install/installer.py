"""Installs and uninstalls. Every step has its way back, and containerd has to answer again, or all of it is taken back.

    install:    plan -> prove it with containerd -> record, files -> kuasar.service -> containerd.service -> ask it
    uninstall:  plan -> no pods? -> containerd's files -> containerd.service -> ask it -> kuasar.service -> the rest

``--dry-run`` ends after the plan.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from kuasar import __version__
from kuasar.core.cgroup import current
from kuasar.core.config import Config, ConfigError, load
from kuasar.core.errors import BackendFailed, InvalidArgument, KuasarError, NotFound, WrongState
from kuasar.install import containerd, work
from kuasar.install.contents import CONFIG, DROP_IN, UNIT, contents, effective_config
from kuasar.install.files import ABSENT, FILE, Found, file, look
from kuasar.install.plan import Change, below, plan_install, plan_uninstall
from kuasar.install.record import PATH, Record, Target
from kuasar.install.services import KUASAR, Services

_CGROUP = "/kuasar"
"""Parent of the cgroups of pods without one of their own."""
_SHOWN_LINES = 12


@dataclass
class Outcome:
    """What was done, or would be."""

    changes: list[Change] = field(default_factory=list)
    services: list[str] = field(default_factory=list)
    """In words, in their order."""
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything is, or would be, different from before."""
        return bool(self.services) or any(change.changes for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        changes = [
            {"path": each.path, "action": each.action, "reason": each.reason, "diff": each.diff()}
            for each in self.changes
        ]
        return {"changed": self.changed, "changes": changes, "services": self.services, "notes": self.notes}


@dataclass(frozen=True)
class Installer:
    """One node."""

    root: str
    """``/``, or a scratch root."""
    services: Services
    runtimes_missing: Callable[[Config, Sequence[str]], str]
    """Asks a containerd that was restarted: why it does not serve these runtimes; empty if it does."""
    pods: Callable[[Config, Sequence[str]], list[str]]
    """The pods that containerd knows of these runtimes; empty if it cannot be asked."""
    end_keeper: Callable[[Config], None]
    """Ends the keeper, which survives kuasar.service; harmless if there is none."""

    # -- install -------------------------------------------------------------------------------------------------------

    def install(self, target: Target, dry_run: bool, brought: bytes | None = None) -> Outcome:
        """``brought``: a configuration to be put there instead of the shipped one.

        Raises a KuasarError if anything is in the way or goes wrong; then nothing is different from before.
        """
        record = work.read_record(self.root) or Record()
        ours, config = effective_config(self.root, record, brought)
        containerd.require_version(target.program)
        main = look(below(self.root, target.config))
        edit = containerd.make_edit(target.program, _text(main), config, target.config, DROP_IN, self.root)
        wanted = contents(ours, edit.drop_in, target.service)
        wanted[target.config] = main if edit.text == _text(main) else file(edit.text.encode())
        if main.kind == ABSENT and edit.text == "":
            del wanted[target.config]
        changes, entries = plan_install(wanted, target.config, record, self.root)
        self._require_kept_drop_in(changes, edit, target, config)
        after = self._recorded(record, target, config, changes, entries)
        outcome = Outcome(changes, notes=list(_notes(changes)))
        steps = self._steps(changes, record, after)
        outcome.services = [f"{verb} {unit}" for verb, unit in steps]
        if not self.services.present:
            outcome.notes += [f"there is no systemd to ask: {verb} {unit} by yourself" for verb, unit in steps]
            outcome.services = []
        if not dry_run and (outcome.changed or after != record):
            new = [each for each in after.data if each not in record.data]
            self._carry_out(changes, after, new, steps, target, config)
        return outcome

    def _require_kept_drop_in(
        self, changes: list[Change], edit: containerd.Edit, target: Target, config: Config
    ) -> None:
        """A drop-in that an operator has edited goes to containerd as it is, so it is what must be right."""
        kept = [change for change in changes if (change.path, change.action) == (DROP_IN, "keep")]
        for change in kept:
            try:
                text = change.before.text
                containerd.check(target.program, edit.text, text, config, target.config, DROP_IN, self.root)
            except KuasarError as exc:
                raise InvalidArgument(f"{DROP_IN} was edited, and does not fit any more: {exc.message}") from exc

    def _recorded(
        self, record: Record, target: Target, config: Config, changes: list[Change], entries: dict[str, Any]
    ) -> Record:
        new = [each for each in _data(config) if not os.path.lexists(below(self.root, each))]
        return replace(
            record,
            version=__version__,
            config=next(change.after.digest for change in changes if change.path == CONFIG),
            containerd=target,
            entries=entries,
            data=_union(record.data, new),
            states=_union(record.states, [config.state_dir]),
            runtimes=_union(record.runtimes, sorted(config.sandboxers)),
        )

    def _steps(self, changes: Sequence[Change], before: Record, after: Record) -> list[tuple[str, str]]:
        changed = {change.path for change in changes if change.changes}
        steps: list[tuple[str, str]] = []
        is_active = self.services.present and self.services.is_active(KUASAR)
        if not is_active and (self.services.present or changed):
            steps.append(("start", KUASAR))
        elif is_active and (UNIT in changed or (before.version, before.config) != (after.version, after.config)):
            steps.append(("restart", KUASAR))
        target = after.containerd
        needs = bool(changed & {target.config, DROP_IN})
        if needs and (not self.services.present or self.services.is_active(target.service)):
            steps.append(("restart", target.service))
        return steps

    def _carry_out(
        self,
        changes: list[Change],
        record: Record,
        new: list[str],
        steps: list[tuple[str, str]],
        target: Target,
        config: Config,
    ) -> None:
        services = self.services
        restarted: list[str] = []
        with work.all_or_nothing() as undo:
            if services.present:
                undo.callback(self._restart_all, restarted)  # with the files as they were
                undo.callback(work.remove_data, new, self.root)
                undo.callback(services.reload)
            work.put_all(changes, record, self.root, undo)
            if services.present:
                services.reload()
                self._serve(steps, config, restarted, undo)
                why = self.runtimes_missing(config, sorted(config.sandboxers)) if target.service in restarted else ""
                if why:
                    raise WrongState(f"{target.service} was restarted, but {why}")

    def _serve(self, steps: list[tuple[str, str]], config: Config, restarted: list[str], undo: work.Undo) -> None:
        for verb, unit in steps:
            if verb == "start":
                undo.callback(self._stop_kuasar, config)
                self._start_kuasar(config)
            else:
                restarted.append(unit)
                self.services.restart(unit)

    def _start_kuasar(self, config: Config) -> None:
        """Its logs go if this fails, so the error has their ends."""
        try:
            self.services.start(KUASAR)
        except BackendFailed as exc:
            logs = [f"{below(self.root, config.log_dir)}/{name}.log" for name in ("supervisord", "gateway")]
            raise BackendFailed("\n".join([exc.message, *filter(None, map(_end_of, logs))])) from exc

    def _stop_kuasar(self, config: Config) -> None:
        self.services.stop(KUASAR)
        self.end_keeper(config)

    def _start_all(self, units: Sequence[str]) -> None:
        for unit in units:
            self.services.start(unit)

    def _restart_all(self, units: Sequence[str]) -> None:
        for unit in units:
            self.services.restart(unit)

    # -- uninstall -----------------------------------------------------------------------------------------------------

    def uninstall(self, dry_run: bool, purge: bool, say: Callable[[str], None]) -> Outcome:
        """Raises NotFound without an installation, WrongState while there are pods of ours, and a KuasarError if
        anything goes wrong before containerd runs without us; then nothing is different from before."""
        record = work.read_record(self.root)
        if record is None:
            raise NotFound(f"kuasar is not installed here: there is no {PATH}")
        target = record.containerd
        config = self._config_if_any()
        self._require_no_pods(record, config)
        self._require_stopped(config)
        changes = plan_uninstall(record, target.config, DROP_IN, self.root, purge)
        outcome = Outcome(changes)
        needs = any(each.changes for each in changes if each.path in (target.config, DROP_IN))
        steps = [("restart", target.service)] if needs else []
        services = self.services
        if services.present:
            steps = [step for step in steps if services.is_active(target.service)]
            steps += [("stop", KUASAR)] if services.is_active(KUASAR) else []
            outcome.services = [f"{verb} {unit}" for verb, unit in steps]
        else:
            steps.append(("stop", KUASAR))
            outcome.notes += [f"there is no systemd to ask: {verb} {unit} by yourself" for verb, unit in steps]
        outcome.notes += [f"{each} goes, with all that is in it" for each in self._data_there(record)]
        if dry_run:
            return outcome
        self._take_away(changes, steps if services.present else [], target, config)
        if self.root == "/":
            remove_cgroup(_CGROUP)
        work.forget(record, self.root, say)
        return outcome

    def _take_away(
        self, changes: Sequence[Change], steps: list[tuple[str, str]], target: Target, config: Config
    ) -> None:
        """containerd first: it must run without us before anything that it used to need goes away."""
        services = self.services
        restarted: list[str] = []
        stopped: list[str] = []
        theirs = [each for each in changes if each.path in (target.config, DROP_IN)]
        with work.all_or_nothing() as undo:
            if services.present:
                undo.callback(self._restart_all, restarted)
                undo.callback(self._start_all, stopped)
                undo.callback(services.reload)
            work.take_back_all(theirs, self.root, undo)
            if ("restart", target.service) in steps:
                restarted.append(target.service)
                services.restart(target.service)
                why = self.runtimes_missing(config, [])
                if why:
                    raise WrongState(f"{target.service} was restarted without kuasar, but {why}")
            if ("stop", KUASAR) in steps:
                stopped.append(KUASAR)
                self._stop_kuasar(config)
            work.take_back_all([each for each in changes if each not in theirs], self.root, undo)
            if services.present:
                services.reload()

    def _config_if_any(self) -> Config:
        """For sockets only: a broken one must keep nobody from uninstalling."""
        try:
            return load(below(self.root, CONFIG)) if look(below(self.root, CONFIG)).kind == FILE else Config()
        except ConfigError:
            return Config()

    def _require_no_pods(self, record: Record, config: Config) -> None:
        directories = [f"{below(self.root, state)}/sandboxes" for state in _union(record.states, [config.state_dir])]
        sandboxes = [name for path in directories if os.path.isdir(path) for name in sorted(os.listdir(path))]
        if self.root == "/":
            sandboxes += [pod for pod in self.pods(config, record.runtimes) if pod not in sandboxes]
        if sandboxes:
            shown = ", ".join(sandboxes[:5]) + (" …" if len(sandboxes) > 5 else "")
            raise WrongState(
                f"there are {len(sandboxes)} sandboxes ({shown}); containerd could not end them without kuasar: "
                "drain the node, or remove the pods (crictl rmp --force ID), then repeat"
            )

    def _require_stopped(self, config: Config) -> None:
        """Where we stop nothing ourselves."""
        if self.services.present or self.root != "/":
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            if probe.connect_ex(config.gateway.socket) == 0:
                raise WrongState(f"the gateway still listens on {config.gateway.socket}: stop kuasar first")

    def _data_there(self, record: Record) -> list[str]:
        return [each for each in record.data if os.path.lexists(below(self.root, each))]


def _text(found: Found) -> str:
    try:
        return found.content.decode()
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"containerd's configuration is not UTF-8: {exc}") from exc


def _data(config: Config) -> list[str]:
    return [config.state_dir, config.log_dir, config.cache_dir]


def _union(old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *new)))


def _end_of(path: str) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as log:
            lines = list(deque(log, _SHOWN_LINES))
    except OSError:
        return ""
    return "".join([f"--- {path}\n", *lines]).rstrip()


def remove_cgroup(path: str) -> None:
    """Remove a cgroup in every hierarchy where it is empty; else leave it."""
    for directory in current().directories(path):
        with suppress(OSError):
            os.rmdir(directory)


def _notes(changes: Sequence[Change]) -> list[str]:
    notes = []
    for change in changes:
        if change.action == "keep":
            beside = any(other.path == f"{change.path}.kuasar-new" for other in changes)
            words = f"; ours is {change.path}.kuasar-new" if beside else ""
            notes.append(f"{change.path} was edited, and is kept{words}")
    return notes
