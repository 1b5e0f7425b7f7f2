"""``kuasar-gateway``: the process that containerd talks to. Started and restarted by supervisord.

One asyncio loop; no threads but gRPC's own, the one that loads it, and the one that calls supervisord; never forks
(gRPC forbids it). Everything it knows comes from the configuration, from the workers' greetings and from what a
predecessor has left with the keeper and in the journal, so it may die at any moment. What task connections need is
loaded and started first: containers wait for it.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kuasar import __version__
from kuasar.api.gen.containerd.task.v2 import task_pb2 as task_v2_pb2
from kuasar.api.gen.containerd.task.v3 import task_pb2 as task_v3_pb2
from kuasar.bus.messages import Hello
from kuasar.bus.router import BusRouter
from kuasar.core import failpoints, log
from kuasar.core.config import Config, ConfigError, load
from kuasar.core.errors import KuasarError, Unavailable
from kuasar.core.process import raise_descriptor_limit
from kuasar.gateway.announce import Announcer
from kuasar.gateway.calls import InFlight, Method, about, methods_of
from kuasar.gateway.custody import Custody
from kuasar.gateway.directory import Directory
from kuasar.gateway.events import EventPublisher
from kuasar.gateway.feed import Feed
from kuasar.gateway.link import Workers
from kuasar.gateway.metrics.service import serve_metrics
from kuasar.gateway.metrics.sources import Sources
from kuasar.gateway.metrics.tallies import UNKNOWN, Tallies
from kuasar.gateway.tasks import TaskService
from kuasar.gateway.tracing.requests import Tracer
from kuasar.gateway.tracing.service import Outbox, export_traces
from kuasar.gateway.ttrpc_server import TtrpcServer
from kuasar.supervisor.keeper_client import Keeper

if TYPE_CHECKING:
    from kuasar.gateway.sandbox_api import SandboxApi

_RESTART_SECONDS = 1.0
_BUS_BACKLOG = 4096
EXIT_USAGE = 2
EXIT_BUSY = 3


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM. Exit codes: 0 stopped, 2 configuration, 3 another gateway is running, 1 anything else."""
    parser = argparse.ArgumentParser(prog="kuasar-gateway", description="Serve containerd's Sandbox and Task APIs.")
    parser.add_argument("--config", metavar="FILE", help="configuration (default: /etc/kuasar/kuasar.toml)")
    parser.add_argument("--version", action="version", version=f"kuasar {__version__}")
    arguments = parser.parse_args(argv)
    try:
        config = load(arguments.config)
    except ConfigError as exc:
        sys.stderr.write(f"{exc}\n")
        return EXIT_USAGE
    log.configure(config.log_level, form=config.log_format, process="gateway")
    log.set_about(about)
    failpoints.configure(config.failpoints_dir)
    os.umask(0o077)
    raise_descriptor_limit()  # two for each container
    try:
        asyncio.run(_serve(config))
    except Unavailable as exc:
        log.error("cannot serve", error=exc)
        return EXIT_BUSY
    return 0


async def _serve(config: Config) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        for directory in (config.state_dir, config.sandboxes_dir, os.path.dirname(config.gateway.socket)):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        stack.callback(os.close, _lock_socket(config.gateway.socket))
        publisher = await stack.enter_async_context(EventPublisher(config.containerd.events))
        announcer = Announcer(publisher)
        directory_ = Directory(config.sandboxes_dir)
        sandbox_api: asyncio.Future[SandboxApi] = loop.create_future()
        router = BusRouter(config.bus_address)
        feed = Feed()
        engine_of = partial(_engine_of, config, directory_)
        tallies = Tallies(engine_of) if config.metrics.listen else None
        outbox = Outbox() if config.tracing.endpoint else None
        tracer = Tracer(config.tracing.sample_ratio, outbox.put) if outbox is not None else None
        _connect(router, directory_, announcer, feed, sandbox_api, tallies)
        custody = Custody(Keeper(config.supervisor.keeper))
        stack.callback(custody.close)
        await custody.find()
        bus = custody.listener("gateway/bus", config.bus_address.removeprefix("ipc://"), _BUS_BACKLOG)
        stack.callback(bus.close)
        await router.start(bus.fileno())
        stack.push_async_callback(router.close)
        settling = asyncio.create_task(directory_.settle())
        stack.callback(settling.cancel)

        workers = Workers(router, engine_of)
        in_flight = InFlight(config.gateway.max_requests_in_flight)
        tasks = TaskService(config, directory_, workers, announcer)
        # The messages of the Task API are the same in both versions but for their package.
        task_methods: dict[str, dict[str, Method]] = {}
        for module in (task_v3_pb2, task_v2_pb2):
            task_methods |= _methods(module, "Task", tasks, in_flight, tallies, tracer)
        ttrpc = TtrpcServer(config.gateway.task_socket, task_methods, custody, f"{config.state_dir}/journal")
        ttrpc.start()
        stack.callback(ttrpc.close)
        kind = await asyncio.to_thread(_load_sandbox_api)
        sandbox_api.set_result(kind(config, directory_, workers, in_flight, task_methods, feed, tallies, tracer))
        stack.push_async_callback(sandbox_api.result().close)
        await sandbox_api.result().start()
        log.info(
            "serving",
            version=__version__,
            socket=config.gateway.socket,
            tasks=config.gateway.task_address,
            bus=config.bus_address,
        )
        if tallies is not None:
            supervision = sandbox_api.result().supervision
            sources = Sources(config, tallies, directory_, router, publisher, in_flight, supervision, outbox)
            await stack.enter_async_context(serve_metrics(config.metrics.listen, sources))
        if outbox is not None:
            await stack.enter_async_context(export_traces(config.tracing.endpoint, outbox))
        await stopping.wait()
        log.info("stopping")


def _load_sandbox_api() -> type[SandboxApi]:
    from kuasar.gateway.sandbox_api import SandboxApi

    return SandboxApi


def _engine_of(config: Config, directory: Directory, sandbox: str) -> str:
    entry = config.sandboxers.get(directory.sandboxer_of(sandbox))
    return entry.engine if entry is not None else UNKNOWN


def _connect(
    router: BusRouter,
    directory: Directory,
    announcer: Announcer,
    feed: Feed,
    sandbox_api: asyncio.Future[SandboxApi],
    tallies: Tallies | None,
) -> None:
    """What happens when a worker greets, dies, or tells of something."""

    def greeted(hello: Hello) -> None:
        directory.greeted(hello)
        if tallies is not None:
            tallies.greeted(hello.sandbox, hello.generation)
        facts = {"generation": hello.generation, "pid": hello.pid, "state": hello.state}
        feed.tell("worker.greeted", hello.sandbox, hello.namespace, **facts)

    def told(sandbox: str, topic: str, body: dict[str, Any]) -> Awaitable[None] | None:
        feed.tell(topic, sandbox, directory.namespace_of(sandbox), **body)
        if tallies is not None and not announcer.has_seen(topic, body):
            tallies.told(sandbox, topic, body)
        return announcer.from_worker(directory.namespace_of(sandbox), topic, body)

    async def look_after(sandbox: str) -> None:
        """An operator may have stopped the worker: then its callers are told, instead of waiting for a successor.

        Not at once: a restart begins with a stop.
        """
        feed.tell("worker.died", sandbox, directory.namespace_of(sandbox))
        await asyncio.sleep(_RESTART_SECONDS)
        link = router.link(sandbox)
        if link is not None and not link.alive and not directory.knows(sandbox):
            router.forget(sandbox)  # it has been removed: nobody is expected
            return
        try:
            if await (await asyncio.shield(sandbox_api)).operator_stopped(sandbox):
                router.suspend(
                    sandbox, f"its worker was stopped by an operator (supervisorctl start sandbox:{sandbox})"
                )
        except KuasarError as exc:
            log.debug("no word from supervisord about a worker", sandbox=sandbox, why=exc)

    router.on_hello = greeted
    router.on_event = told
    router.on_death = look_after


def _methods(
    module: ModuleType,
    name: str,
    service: object,
    in_flight: InFlight,
    tallies: Tallies | None,
    tracer: Tracer | None,
) -> dict[str, dict[str, Method]]:
    description = module.DESCRIPTOR.services_by_name[name]
    return {description.full_name: methods_of(description, service, in_flight, tallies, tracer)}


def _lock_socket(path: str) -> int:
    """Hold ``<path>.lock``, because binding would silently steal the socket of a gateway that lives.

    The lock goes with the process. Raises Unavailable when another one has it.
    """
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Unavailable(f"another gateway is serving {path}") from None
    return fd


if __name__ == "__main__":
    sys.exit(main())
