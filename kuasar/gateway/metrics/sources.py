"""The parts of a running gateway of which the metrics tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kuasar.bus.router import BusRouter
from kuasar.core.config import Config
from kuasar.gateway.calls import InFlight
from kuasar.gateway.directory import Directory
from kuasar.gateway.events import EventPublisher
from kuasar.gateway.metrics.tallies import Tallies
from kuasar.gateway.tracing.service import Outbox

if TYPE_CHECKING:
    from kuasar.gateway.supervision import Supervision


@dataclass(frozen=True)
class Sources:
    """Read on the gateway's loop, never changed."""

    config: Config
    tallies: Tallies
    directory: Directory
    router: BusRouter
    publisher: EventPublisher
    in_flight: InFlight
    supervision: Supervision
    outbox: Outbox | None = None
    """Where traces go; None: nothing is traced."""
