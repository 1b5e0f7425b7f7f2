"""Every metric there is: name, kind, labels, what it means. docs/metrics.md is written from this, and nothing else is
ever exposed under our name.

Labels never hold what there is no bound of: no ids of sandboxes or containers, no pod names.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What Prometheus calls the type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, eq=False)
class Metric:
    """One of them. Compared by identity."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets; one without an end follows."""


FAST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
START_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30.0, 60.0)

_ALL: list[Metric] = []


def _add(name: str, kind: Kind, words: str, labels: tuple[str, ...] = (), bounds: tuple[float, ...] = ()) -> Metric:
    metric = Metric(f"kuasar_{name}", kind, words, labels, bounds)
    _ALL.append(metric)
    return metric


BUILD = _add("build_info", Kind.GAUGE, "1; the label says which version serves.", ("version",))

START = _add(
    "sandbox_start_seconds",
    Kind.HISTOGRAM,
    "From containerd's Controller.Start to its answer, of starts that succeeded, by how the machine came up: fork (an "
    "agent forked from the zygote), exec (executed, because the zygote was away), clone (of a template), boot.",
    ("engine", "path"),
    START_SECONDS,
)
PHASE = _add(
    "sandbox_start_phase_seconds",
    Kind.HISTOGRAM,
    "What the worker spent on each phase of such a start (kuasarctl timings shows them for one sandbox).",
    ("engine", "path", "phase"),
    START_SECONDS,
)
START_FAILURES = _add(
    "sandbox_start_failures_total", Kind.COUNTER, "Starts that failed, by the kind of the error.", ("engine", "error")
)
TEMPLATE_STARTS = _add(
    "template_starts_total",
    Kind.COUNTER,
    "Starts on engines that have templates: hit (a clone), miss (none was there yet: booted), failed (its clone "
    "failed: booted), off (switched off in the configuration).",
    ("engine", "result"),
)
ENDS = _add(
    "sandbox_ends_total",
    Kind.COUNTER,
    "Sandboxes that have ended: stopped (as asked) or died (by themselves, kuasarctl why tells the reason).",
    ("engine", "how"),
)
OOMS = _add(
    "container_oom_kills_total", Kind.COUNTER, "Out-of-memory kills in containers that were reported.", ("engine",)
)
STDIO = _add(
    "stdio_bytes_total",
    Kind.COUNTER,
    "Output that went through our processes, counted when its process ends: all of a machine's, and of commands "
    "(execs) and terminals elsewhere. The first process of other containers writes to containerd's FIFO itself.",
    ("engine", "stream"),
)
RESTARTS = _add(
    "worker_restarts_total",
    Kind.COUNTER,
    "Workers that were replaced by a successor while this gateway lived.",
    ("engine",),
)
SANDBOXES = _add("sandboxes", Kind.GAUGE, "Sandboxes by what their records say.", ("engine", "state"))
CONTAINERS = _add("containers", Kind.GAUGE, "Containers in the sandboxes' records.", ("engine",))
WORKERS = _add(
    "workers",
    Kind.GAUGE,
    "Workers by supervisord's word for them; BACKOFF is a crash loop. Missing while supervisord does not answer.",
    ("state",),
)
SUPERVISORD_UP = _add("supervisord_up", Kind.GAUGE, "Whether supervisord answered this scrape (1) or not (0).")

RPC = _add(
    "rpc_seconds",
    Kind.HISTOGRAM,
    "Requests of containerd's that were answered, errors included. Not Wait, which lasts as long as a container.",
    ("method",),
    FAST_SECONDS,
)
RPC_ERRORS = _add(
    "rpc_errors_total", Kind.COUNTER, "Those that were answered with an error, by its kind.", ("method", "error")
)
RPC_IN_FLIGHT = _add("rpc_in_flight", Kind.GAUGE, "Requests being answered now, Wait not counted.")
RPC_LIMIT = _add("rpc_in_flight_limit", Kind.GAUGE, "How many may be (gateway.max_requests_in_flight).")

LINKS = _add(
    "bus_links",
    Kind.GAUGE,
    "Workers as the bus sees them: alive, dead (a successor is expected), expected (has not greeted yet), suspended "
    "(stopped by an operator).",
    ("state",),
)
SILENT = _add("bus_silent_workers", Kind.GAUGE, "Workers that live and have said nothing for 15 seconds.")
PENDING = _add("bus_pending_requests", Kind.GAUGE, "Requests to workers that are not answered yet, waits included.")
PENDING_MOST = _add("bus_pending_requests_max", Kind.GAUGE, "The most of one sandbox; 1024 are allowed.")
UNSENT = _add(
    "bus_unsent_requests", Kind.GAUGE, "Those that wait for their worker: it has not greeted yet, or does not read."
)
REQUESTS = _add("bus_requests_total", Kind.COUNTER, "Requests made to workers.")
RESENT = _add("bus_resent_requests_total", Kind.COUNTER, "Requests sent again to a worker that greeted.")
REPLIES = _add("bus_replies_total", Kind.COUNTER, "Answers of workers that somebody waited for.")
EVENTS = _add("bus_events_total", Kind.COUNTER, "Events of workers.")
DROPPED = _add(
    "bus_dropped_messages_total",
    Kind.COUNTER,
    "Messages that were not passed on: malformed, stale (of an outdated worker), unasked (nobody waits any more), "
    "repeated (an event seen before), unroutable (to a worker that is not connected), full (to one that does not "
    "read; sent later).",
    ("why",),
)
DEATHS = _add("worker_deaths_total", Kind.COUNTER, "Workers that ended, also those whose sandbox was removed.")

EVENTS_WAITING = _add("containerd_events_waiting", Kind.GAUGE, "Task events that containerd has not taken yet.")
EVENTS_DELIVERED = _add("containerd_events_delivered_total", Kind.COUNTER, "Task events that containerd has taken.")
EVENTS_DROPPED = _add("containerd_events_dropped_total", Kind.COUNTER, "Task events that were given up.")

TRACES = _add(
    "traces_total",
    Kind.COUNTER,
    "Traces of requests, if they are on: exported (a collector has them) or dropped (none took them).",
    ("result",),
)

RECORDED = _add(
    "objects_recorded",
    Kind.GAUGE,
    "What the sandboxes' records name, at the reconciler's last look (kuasarctl gc --dry-run is a look, too).",
    ("kind",),
)
ALIVE = _add("objects_alive", Kind.GAUGE, "What there really was of it at that look.", ("kind",))
LEAKED = _add(
    "objects_leaked",
    Kind.GAUGE,
    "What nobody answered for at that look and could not be freed (or was only looked at). Anything but 0 is a leak.",
    ("kind",),
)
STEPS = _add(
    "reconciler_steps_total",
    Kind.COUNTER,
    "What the reconciler has done, by how it went: done or failed.",
    ("verb", "result"),
)
LOOKED_AT = _add(
    "reconciler_last_look_timestamp_seconds",
    Kind.GAUGE,
    "When it looked last, in seconds since the epoch; it does every minute.",
)

PROCESSES = _add(
    "processes",
    Kind.GAUGE,
    "Our processes by what they are; machine is what stands for a virtual machine, agent for any other sandbox.",
    ("process",),
)
RESIDENT = _add(
    "process_resident_memory_bytes",
    Kind.GAUGE,
    "Resident memory of all processes of a kind; of a machine, with its guest's. What they share counts in each.",
    ("process",),
)
PROPORTIONAL = _add(
    "process_proportional_memory_bytes",
    Kind.GAUGE,
    "Proportional set size of all processes of a kind together (what they share is divided), estimated from four of "
    "them. Not of machines.",
    ("process",),
)
DESCRIPTORS = _add("process_open_fds", Kind.GAUGE, "Open descriptors of all processes of a kind.", ("process",))

SCRAPE = _add("scrape_seconds", Kind.GAUGE, "How long the scrape before this one took.")

ALL = tuple(_ALL)
