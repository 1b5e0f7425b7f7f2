"""Every end is reported once: what containerd's event service has told, against what the load has seen.

A gateway that dies between telling containerd of an end and hearing that it was heard has its successor tell it again:
nobody can know better. Such a repetition, equal and around the death of a gateway, is counted; any other is wrong.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from tests.e2e.events import Event

_EXIT = "/tasks/exit"
_SLACK_SECONDS = 5.0
"""How much later than it was told a report may reach us: ``ctr events`` on a busy machine."""


class Process(NamedTuple):
    """What ends: a container, or a command in one (whose id is containerd's own)."""

    container: str
    id: str


class Exits:
    """Told of by containerd, and expected by the loads."""

    def __init__(self) -> None:
        self.gateway_deaths: list[float] = []
        """On the monotonic clock."""
        self.repeated = 0
        """Reports that were repeated by a successor of a gateway."""

    def gateway_dies(self) -> None:
        """Now."""
        self.gateway_deaths.append(time.monotonic())

    def wrong(
        self,
        events: list[Event],
        containers: Mapping[str, int],
        commands: Mapping[str, Counter[int]],
    ) -> list[str]:
        """In words; also counts :attr:`repeated`. ``containers``: how each has ended; ``commands``: per container the
        codes of what was executed."""
        reports: dict[Process, list[Event]] = defaultdict(list)
        for event in events:
            if event.topic == _EXIT:
                body = event.body
                reports[Process(body["container_id"], body.get("id", ""))].append(event)
        found = []
        self.repeated = 0
        for process, told in reports.items():
            found += self._repetitions(process, told)
        for container, code in containers.items():
            seen = [_code(event) for event in reports.get(Process(container, container), [])]
            if set(seen) != {code}:
                found.append(f"container {container} ended with {code}; containerd was told {seen}")
        for container, codes in commands.items():
            told_codes = Counter(
                _code(told[0])
                for process, told in reports.items()
                if process.container == container and process.id != container
            )
            if told_codes != codes:
                missing, more = dict(codes - told_codes), dict(told_codes - codes)
                found.append(f"commands in {container}: not told of {missing}, told of {more} too many (code: times)")
        return found

    def _repetitions(self, process: Process, told: list[Event]) -> list[str]:
        if len({_code(event) for event in told}) > 1:
            return [f"{process}: told to have ended with {[_code(event) for event in told]}"]
        found = []
        for one, other in pairwise(told):
            if any(one.at - _SLACK_SECONDS <= death <= other.at for death in self.gateway_deaths):
                self.repeated += 1
            else:
                found.append(f"{process}: reported twice, {other.at - one.at:.2f} s apart")
        return found


def _code(event: Event) -> int:
    return int(event.body.get("exit_status", 0))
