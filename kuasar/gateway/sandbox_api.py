"""The gateway's Sandbox API: gRPC, its service, and the way to supervisord. Loaded while tasks are served already.

These imports are half of the gateway's start. containerd calls the Sandbox API again when it is not there; the Task API
has callers that wait for a successor of the gateway that died.
"""

from __future__ import annotations

from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2
from kuasar.core.config import Config
from kuasar.gateway.admin import AdminService
from kuasar.gateway.calls import InFlight, methods_of
from kuasar.gateway.controller import ControllerService
from kuasar.gateway.directory import Directory
from kuasar.gateway.feed import Feed
from kuasar.gateway.grpc_server import make_server
from kuasar.gateway.link import Workers
from kuasar.gateway.metrics.tallies import Tallies
from kuasar.gateway.supervision import Supervision
from kuasar.gateway.tracing.requests import Tracer
from kuasar.gateway.ttrpc_connection import Services
from kuasar.supervisor.client import SupervisorClient

_STOP_SECONDS = 1.0


class SandboxApi:
    """Serves from :meth:`start` to :meth:`close`; beside the Sandbox API also the admin service and ``tasks``,
    the Task API over gRPC."""

    def __init__(
        self,
        config: Config,
        directory: Directory,
        workers: Workers,
        in_flight: InFlight,
        tasks: Services,
        feed: Feed,
        tallies: Tallies | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.supervision = Supervision(SupervisorClient(config.supervisor.socket))
        controller = ControllerService(config, directory, workers, self.supervision, feed, tallies)
        self._controller = controller
        self._claims = controller.claims
        description = controller_pb2.DESCRIPTOR.services_by_name["Controller"]
        methods = {description.full_name: methods_of(description, controller, in_flight, tallies, tracer)}
        admin = AdminService(config, directory, workers, self.supervision, feed)
        self._server = make_server(config, methods | tasks, (admin.handler(),))

    async def start(self) -> None:
        """Listen."""
        self._claims.start()
        await self._server.start()

    async def operator_stopped(self, sandbox: str) -> bool:
        """Whether an operator has stopped the worker of ``sandbox``."""
        return await self.supervision.operator_stopped(sandbox)

    async def close(self) -> None:
        """End; calls under way have a moment."""
        self._controller.stopping = True
        await self._server.stop(_STOP_SECONDS)
        self._claims.close()
        self.supervision.close()
