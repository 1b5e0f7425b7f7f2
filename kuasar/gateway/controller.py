"""containerd's Sandbox API, ``containerd.services.sandbox.v1.Controller``: pods.

Each method takes the request and the :class:`Call` and gives the response or raises one of our errors; gRPC is in
``gateway/server.py``. containerd calls Status many times per pod operation, so it costs one trip over the bus.
"""

from __future__ import annotations

import asyncio
import platform
import time

from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2 as pb
from kuasar.api.gen.containerd.types import metrics_pb2, platform_pb2
from kuasar.core import log
from kuasar.core.config import Config
from kuasar.core.descriptors import require_room
from kuasar.core.errors import AlreadyExists, InvalidArgument, KuasarError, NotFound, WrongState
from kuasar.core.failpoints import failpoint
from kuasar.core.ids import require_id
from kuasar.gateway.calls import Call
from kuasar.gateway.claims import Claims
from kuasar.gateway.directory import Directory
from kuasar.gateway.feed import Feed
from kuasar.gateway.link import Workers
from kuasar.gateway.metrics.tallies import Tallies
from kuasar.gateway.pods import pod_spec_of, pod_spec_of_metadata
from kuasar.gateway.stats import metrics_any
from kuasar.gateway.supervision import Supervision
from kuasar.gateway.times import timestamp

_DEFAULT_GRACE_SECONDS = 10.0
_ABANDON_SECONDS = 30.0
_DESCRIPTORS_PER_SANDBOX = 4
"""The worker's connection and its pidfd."""
_ARCHITECTURES = {"x86_64": ("amd64", ""), "aarch64": ("arm64", "v8"), "riscv64": ("riscv64", "")}
_TASK_API_VERSION = 3


class ControllerService:
    """One per gateway; the state of the sandboxes is in the workers."""

    def __init__(
        self,
        config: Config,
        directory: Directory,
        workers: Workers,
        supervision: Supervision,
        feed: Feed,
        tallies: Tallies | None = None,
    ) -> None:
        self._feed = feed
        self._tallies = tallies
        self._config = config
        self._directory = directory
        self._workers = workers
        self._supervision = supervision
        self.stopping = False
        """Calls that are cancelled from now on have not lost their callers."""
        self.claims = Claims(f"{config.state_dir}/unclaimed", self._give_up)
        self._background: set[asyncio.Task[None]] = set()

    async def Create(self, request: pb.ControllerCreateRequest, call: Call) -> pb.ControllerCreateResponse:  # noqa: N802
        """Record the sandbox and give it a worker; nothing of it runs yet."""
        sandbox = require_id(request.sandbox_id, "sandbox_id")
        engine = self._engine_of(request.sandboxer)
        config = pod_spec_of(request.options, request.netns_path)
        # If it is known, this may be the repetition of a call during which our predecessor died: the worker knows.
        known = self._directory.knows(sandbox)
        self.claims.begun(sandbox, call.namespace)
        if not known:
            require_room(_DESCRIPTORS_PER_SANDBOX, f"sandbox {sandbox}")
        self._directory.add_sandbox(call.namespace, sandbox, request.sandboxer)
        try:
            await self._supervision.add(sandbox)
            failpoint("gateway.added")
            body = {
                "namespace": call.namespace,
                "sandboxer": request.sandboxer,
                "engine": engine,
                "netns": request.netns_path,
                "bundle": "",
                "config": config,
            }
            await self._workers.change_again(sandbox, "sandbox.create", body, call)
            failpoint("gateway.created")
        except AlreadyExists:
            self.claims.settled(sandbox)
            raise  # the worker has a sandbox that we had not heard of: it is not ours to end
        except BaseException:
            if not known:
                self._give_up(sandbox, call.namespace)
            raise
        self._directory.add_sandbox(call.namespace, sandbox, request.sandboxer)
        self._feed.tell("sandbox.created", sandbox, call.namespace, engine=engine)
        return pb.ControllerCreateResponse(sandbox_id=sandbox)

    def _give_up(self, sandbox: str, namespace: str) -> None:
        """Have what a failed Create has made removed, without keeping the caller waiting."""
        task = asyncio.ensure_future(self._abandon(sandbox, namespace))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _engine_of(self, sandboxer: str) -> str:
        entry = self._config.sandboxers.get(sandboxer)
        if entry is None:
            known = ", ".join(sorted(self._config.sandboxers))
            raise InvalidArgument(f"sandboxer: {sandboxer!r} is not configured (there are: {known})", field="sandboxer")
        return entry.engine

    async def Start(self, request: pb.ControllerStartRequest, call: Call) -> pb.ControllerStartResponse:  # noqa: N802
        """Start the machine; answers when its agent is ready, with the address of the Task API."""
        sandbox = await self._require(request.sandbox_id, call)
        self.claims.begun(sandbox, call.namespace)
        started = time.monotonic()
        try:
            reply = await self._workers.change_again(sandbox, "sandbox.start", {}, call)
            failpoint("gateway.started")
        except WrongState:
            self.claims.settled(sandbox)
            raise  # it is running, or going already
        except KuasarError as exc:
            if self._tallies is not None:
                self._tallies.start_failed(sandbox, exc.kind)
            await self._abandon(sandbox, call.namespace)
            raise
        except asyncio.CancelledError:
            # Whoever wanted it has gone away (a caller of CRI that died, or whose time was over): containerd forgets
            # it. If it is we who end, the caller may ask our successor again.
            if not self.stopping:
                self._give_up(sandbox, call.namespace)
            raise
        seconds = time.monotonic() - started
        milliseconds = round(seconds * 1000, 1)
        if self._tallies is not None:
            self._tallies.started(sandbox, seconds, reply)
        log.info("sandbox started", sandbox=sandbox, ms=milliseconds)
        self._feed.tell("sandbox.started", sandbox, call.namespace, pid=reply["pid"], ms=milliseconds)
        return pb.ControllerStartResponse(
            sandbox_id=sandbox,
            pid=reply["pid"],
            created_at=timestamp(reply["created_at"]),
            address=self._config.gateway.task_address,
            version=_TASK_API_VERSION,
        )

    async def _abandon(self, sandbox: str, namespace: str) -> None:
        """Create or Start failed: containerd forgets such a sandbox without another word, so nothing of it may stay."""
        call = Call(namespace, time.monotonic() + _ABANDON_SECONDS)
        try:
            await self._workers.change(sandbox, "sandbox.shutdown", {}, call)
        except KuasarError as exc:
            log.error("a sandbox that failed could not be removed in order", sandbox=sandbox, error=exc)
            self._supervision.remove_soon(sandbox)
        self._forget(sandbox)
        self.claims.settled(sandbox)
        log.warning("a sandbox that failed was removed", sandbox=sandbox)
        self._feed.tell("sandbox.removed", sandbox, namespace, failed="true")

    def _forget(self, sandbox: str) -> None:
        self._directory.forget(sandbox)
        if self._tallies is not None:
            self._tallies.removed(sandbox)

    async def Platform(self, request: pb.ControllerPlatformRequest, call: Call) -> pb.ControllerPlatformResponse:  # noqa: N802
        """Where containers of this sandbox run: every engine of today runs the host's architecture."""
        await self._claim(request.sandbox_id, call)
        machine = platform.machine()
        architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
        described = platform_pb2.Platform(os="linux", architecture=architecture, variant=variant)
        return pb.ControllerPlatformResponse(platform=described)

    async def Stop(self, request: pb.ControllerStopRequest, call: Call) -> pb.ControllerStopResponse:  # noqa: N802
        """End the sandbox: gracefully within ``timeout_secs``, then by force. Stopping what is gone succeeds."""
        try:
            sandbox = await self._claim(request.sandbox_id, call)
        except NotFound:
            return pb.ControllerStopResponse()
        grace = float(request.timeout_secs) or _DEFAULT_GRACE_SECONDS
        reply = await self._workers.change_again(sandbox, "sandbox.stop", {"timeout": grace}, call)
        log.info("sandbox stopped", sandbox=sandbox, stage=reply["stage"])
        self._feed.tell("sandbox.stopped", sandbox, call.namespace, stage=reply["stage"])
        return pb.ControllerStopResponse()

    async def Wait(self, request: pb.ControllerWaitRequest, call: Call) -> pb.ControllerWaitResponse:  # noqa: N802
        """Answers when the sandbox has ended."""
        sandbox = await self._claim(request.sandbox_id, call)
        reply = await self._workers.wait(sandbox, "sandbox.wait", {}, call)
        return pb.ControllerWaitResponse(exit_status=reply["exit_status"], exited_at=timestamp(reply["exited_at"]))

    async def Status(self, request: pb.ControllerStatusRequest, call: Call) -> pb.ControllerStatusResponse:  # noqa: N802
        """Where the sandbox stands; with ``verbose`` also where its things are and how its start went."""
        sandbox = await self._claim(request.sandbox_id, call)
        reply = await self._workers.read(sandbox, "sandbox.status", {"verbose": request.verbose}, call)
        ready = reply["state"] == "ready"
        info = reply["info"]
        if request.verbose:
            info |= {"state": reply["state"], "sandboxer": self._directory.sandboxer_of(sandbox)}
        return pb.ControllerStatusResponse(
            sandbox_id=sandbox,
            pid=reply["pid"],
            state="SANDBOX_READY" if ready else "SANDBOX_NOTREADY",
            info=info,
            created_at=timestamp(reply["created_at"]),
            exited_at=timestamp(reply["exited_at"]),
            address=self._config.gateway.task_address if ready else "",
            version=_TASK_API_VERSION if ready else 0,
        )

    async def Shutdown(self, request: pb.ControllerShutdownRequest, call: Call) -> pb.ControllerShutdownResponse:  # noqa: N802
        """Remove the sandbox and all it holds; legal in every state, harmless to repeat."""
        try:
            sandbox = await self._claim(request.sandbox_id, call)
        except NotFound:
            return pb.ControllerShutdownResponse()
        try:
            await self._workers.change_again(sandbox, "sandbox.shutdown", {}, call)
        except NotFound as exc:
            log.info("the sandbox was gone already", sandbox=sandbox, why=exc)
        failpoint("gateway.shut-down")
        self._forget(sandbox)
        await self._supervision.gone(sandbox)
        self._feed.tell("sandbox.removed", sandbox, call.namespace)
        return pb.ControllerShutdownResponse()

    async def Metrics(self, request: pb.ControllerMetricsRequest, call: Call) -> pb.ControllerMetricsResponse:  # noqa: N802
        """Statistics of the whole pod, in the cgroup version of the node."""
        sandbox = await self._claim(request.sandbox_id, call)
        reply = await self._workers.read(sandbox, "sandbox.metrics", {}, call)
        metric = metrics_pb2.Metric(timestamp=timestamp(time.time_ns()), id=sandbox, data=metrics_any(reply["stats"]))
        return pb.ControllerMetricsResponse(metrics=metric)

    async def Update(self, request: pb.ControllerUpdateRequest, call: Call) -> pb.ControllerUpdateResponse:  # noqa: N802
        """Take over a changed record of the sandbox: the CRI plugin's, in ``extensions.metadata``."""
        sandbox = await self._claim(request.sandbox_id, call)
        for field in request.fields:
            if field not in ("extensions", "extensions.metadata"):
                raise InvalidArgument(
                    f"fields: {field!r} cannot be updated (only extensions.metadata can)", field="fields"
                )
        extension = request.sandbox.extensions.get("metadata")
        if extension is None:
            raise InvalidArgument("sandbox.extensions: no entry 'metadata'", field="sandbox.extensions.metadata")
        body = {"config": pod_spec_of_metadata(extension.value), "fields": list(request.fields)}
        await self._workers.change_again(sandbox, "sandbox.update", body, call)
        return pb.ControllerUpdateResponse()

    async def _claim(self, sandbox_id: str, call: Call) -> str:
        """Like :meth:`_require`, for calls that show that the caller has heard of the sandbox's start."""
        sandbox = await self._require(sandbox_id, call)
        self.claims.settled(sandbox)
        return sandbox

    async def _require(self, sandbox_id: str, call: Call) -> str:
        return await self._directory.require_sandbox(call.namespace, require_id(sandbox_id, "sandbox_id"))
