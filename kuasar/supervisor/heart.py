"""What supervisord tells systemd: ready, once the gateway answers; alive, for as long as it does.

Runs in supervisord's loop, which passes at least once a second. So the watchdog sees a loop that hangs, and a gateway
that does: supervisord stays silent, systemd ends and restarts it, and a new gateway comes. Pods do not notice.
Without ``NOTIFY_SOCKET`` in the environment nothing here runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from kuasar.core.notify import notify
from kuasar.supervisor.probe import GatewayProbe

LONGEST_PAUSE = 10.0
"""Seconds between two questions, where systemd does not ask for less."""
_HASTE = 0.05
"""While something is awaited."""
_RETRY = 0.5


class Heart:
    """Beats with every pass of the loop."""

    def __init__(self, address: str, watchdog_seconds: float, probe: GatewayProbe) -> None:
        """``watchdog_seconds``: how long systemd waits for a sign; 0: it does not wait."""
        self._address = address
        self._probe = probe
        self._pause = min(LONGEST_PAUSE, watchdog_seconds / 4) if watchdog_seconds else LONGEST_PAUSE
        self._next = 0.0
        self._ready = False
        self._status = ""

    def beat(self, now: float) -> float:
        """Look after the question that is under way, or put one. Gives the seconds until this wants to be called again.

        ``now``: seconds of a clock that only goes forward.
        """
        waited = self._probe.waiting
        if self._probe.answered(now):
            self._tell_alive()
            self._next = now + self._pause
        elif not self._probe.waiting and (waited or now >= self._next):
            if not waited:
                self._probe.ask(now)
            self._next = now + _RETRY
            self._tell_why()
        return _HASTE if self._probe.waiting else max(self._next - now, 0.0)

    def stop(self, ends: bool) -> None:
        """supervisord ends, or (not ``ends``) makes itself anew: then there will be another heart."""
        self._probe.close()
        if ends:
            notify(self._address, "STOPPING=1")

    def _tell_alive(self) -> None:
        words = ["WATCHDOG=1"]
        if not self._ready:
            self._ready = True
            words.append("READY=1")
        if self._status != "serving":
            self._status = "serving"
            words.append("STATUS=serving")
        notify(self._address, *words)

    def _tell_why(self) -> None:
        why = "" if self._probe.waiting else self._probe.why
        if why and why != self._status:
            self._status = why
            notify(self._address, f"STATUS={why}")


def make_heart(environment: Mapping[str, str], task_socket: str, gateway_socket: str) -> Heart | None:
    """What systemd's variables in ``environment`` ask for; None without it."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return None
    microseconds = environment.get("WATCHDOG_USEC", "0")
    seconds = int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0
    return Heart(address, seconds, GatewayProbe(task_socket, gateway_socket))
