"""What containerd would never say: each piece of nonsense gets a clear code and words, and harms nobody.

Every test ends with the same question: do the gateway and a pod that was there before still work?
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2 as sandbox
from kuasar.api.gen.containerd.task.v3 import task_pb2 as task
from tests.e2e.engines import HOST_NETWORK, OURS
from tests.e2e.gateway import NAMESPACE, TIMEOUT, Gateway
from tests.e2e.harness import Container, Node
from tests.e2e.stack import BROKEN

pytestmark = pytest.mark.needs(OURS)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
BAD_IDS = ["", "..", "../../etc", "a/b", "/abs", "a" * 1000, "a b", "a\nb", "-x", "ü", "a..b", ".", "a\0b"]


@pytest.fixture
def bystander(node: Node) -> Container:
    """A container that must not notice."""
    return node.pod("bystander").run_idle()


@pytest.fixture
def gateway(node: Node, bystander: Container) -> Iterator[Gateway]:
    """The gateway; after the test it and the bystander must work."""
    pid = node.stack.pid("gateway")
    with Gateway(node.stack.layout.gateway_socket) as channel:
        yield channel
    assert node.stack.pid("gateway") == pid
    assert bystander.running()
    command, _ = node.engine.programs.say("still here")
    assert bystander.pod.run(command, "after").wait().exit_code == 0


@pytest.fixture
def created(node: Node, gateway: Gateway) -> Iterator[str]:
    """A sandbox made directly, ready, without CRI, and so on the host's network."""
    if not node.engine.can(HOST_NETWORK):
        pytest.skip(f"{node.engine.handler} does not declare: {HOST_NETWORK}")
    pod = "direct-1"
    gateway.create(pod, node.engine.handler)
    gateway.start(pod, node.engine.handler)
    yield pod
    gateway.shutdown(pod, node.engine.handler)


def refused(code: grpc.StatusCode, words: str, call: Callable[[], object]) -> None:
    """`call` fails with `code`, and the message contains `words`."""
    error = failed(call)
    assert (error.code(), words in (error.details() or "")) == (code, True), error


def failed(call: Callable[[], object]) -> grpc.Call:
    """How `call` failed."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return cast("grpc.Call", caught.value)  # what a unary call raises is both


def bundle(directory: Path, pod: str, config: object = None, **changes: object) -> str:
    """A bundle as containerd makes them."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sandbox").write_text(pod)
    (directory / "rootfs").mkdir(exist_ok=True)
    if config is None:
        config = {
            "ociVersion": "1.0.2",
            "process": {"args": ["/x"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "mount"}]},
            **changes,
        }
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(directory)


@pytest.mark.parametrize("name", ["", "no-such-sandboxer", "../kuasar-runc", "x" * 1000])
def test_unknown_sandboxer(gateway: Gateway, name: str) -> None:
    refused(INVALID, "sandboxer", lambda: gateway.create("one", name))


@pytest.mark.parametrize("bad", BAD_IDS, ids=ascii)
def test_bad_sandbox_ids(node: Node, gateway: Gateway, bad: str) -> None:
    handler = node.engine.handler
    for call in (gateway.create, gateway.start, gateway.status, gateway.stop, gateway.shutdown):
        refused(INVALID, "sandbox_id", partial(call, bad, handler))


@pytest.mark.parametrize("bad", BAD_IDS, ids=ascii)
def test_bad_container_ids(gateway: Gateway, created: str, tmp_path: Path, bad: str) -> None:
    where = bundle(tmp_path / "bundle", created)
    request = task.CreateTaskRequest(id=bad, bundle=where)
    refused(INVALID, "id", lambda: gateway.task.Create(request, timeout=TIMEOUT, metadata=NAMESPACE))


@pytest.mark.parametrize("bad", ["", "..", "a/b", "a" * 1000])
def test_bad_exec_ids(gateway: Gateway, bystander: Container, bad: str) -> None:
    request = task.ExecProcessRequest(id=bystander.id, exec_id=bad)
    refused(INVALID, "exec_id", lambda: gateway.task.Exec(request, timeout=TIMEOUT, metadata=NAMESPACE))


def test_missing_namespace(node: Node, gateway: Gateway) -> None:
    request = sandbox.ControllerCreateRequest(sandbox_id="one", sandboxer=node.engine.handler)
    refused(INVALID, "containerd-namespace", lambda: gateway.controller.Create(request, timeout=TIMEOUT))
    state = task.StateRequest(id="one")
    refused(INVALID, "containerd-namespace", lambda: gateway.task.State(state, timeout=TIMEOUT))


def test_bad_namespace(node: Node, gateway: Gateway) -> None:
    request = sandbox.ControllerCreateRequest(sandbox_id="one", sandboxer=node.engine.handler)
    metadata = (("containerd-namespace", "../x"),)
    refused(INVALID, "namespace", lambda: gateway.controller.Create(request, timeout=TIMEOUT, metadata=metadata))


def test_other_namespace(node: Node, gateway: Gateway, bystander: Container) -> None:
    """Ids are unique per namespace only: what is another namespace's does not exist."""
    metadata = (("containerd-namespace", "other"),)
    state = task.StateRequest(id=bystander.id)
    refused(NOT_FOUND, bystander.id, lambda: gateway.task.State(state, timeout=TIMEOUT, metadata=metadata))
    status = sandbox.ControllerStatusRequest(sandbox_id=bystander.pod.id, sandboxer=node.engine.handler)
    refused(NOT_FOUND, bystander.pod.id, lambda: gateway.controller.Status(status, timeout=TIMEOUT, metadata=metadata))


def test_requests_before_create(node: Node, gateway: Gateway) -> None:
    handler = node.engine.handler
    refused(NOT_FOUND, "ghost", lambda: gateway.start("ghost", handler))
    refused(NOT_FOUND, "ghost", lambda: gateway.status("ghost", handler))
    gateway.stop("ghost", handler)  # what is gone is stopped
    gateway.shutdown("ghost", handler)
    requests: list[tuple[Callable[..., object], object]] = [
        (gateway.task.Start, task.StartRequest(id="ghost")),
        (gateway.task.State, task.StateRequest(id="ghost")),
        (gateway.task.Kill, task.KillRequest(id="ghost", signal=9)),
        (gateway.task.Wait, task.WaitRequest(id="ghost")),
        (gateway.task.Exec, task.ExecProcessRequest(id="ghost", exec_id="e")),
        (gateway.task.Pids, task.PidsRequest(id="ghost")),
        (gateway.task.Stats, task.StatsRequest(id="ghost")),
        (gateway.task.Pause, task.PauseRequest(id="ghost")),
        (gateway.task.Delete, task.DeleteRequest(id="ghost")),
    ]
    for call, request in requests:
        refused(NOT_FOUND, "ghost", partial(call, request, timeout=TIMEOUT, metadata=NAMESPACE))


@pytest.mark.needs(HOST_NETWORK)
def test_sandbox_life_out_of_order(node: Node, gateway: Gateway) -> None:
    handler = node.engine.handler
    gateway.create("direct-2", handler)
    refused(EXISTS, "direct-2", lambda: gateway.create("direct-2", handler))
    gateway.start("direct-2", handler)
    refused(grpc.StatusCode.FAILED_PRECONDITION, "direct-2", lambda: gateway.start("direct-2", handler))
    refused(EXISTS, "direct-2", lambda: gateway.create("direct-2", handler))
    assert gateway.status("direct-2", handler).state == "SANDBOX_READY"
    gateway.stop("direct-2", handler)
    gateway.stop("direct-2", handler)
    assert gateway.status("direct-2", handler).state == "SANDBOX_NOTREADY"
    gateway.shutdown("direct-2", handler)
    gateway.shutdown("direct-2", handler)
    refused(NOT_FOUND, "direct-2", lambda: gateway.status("direct-2", handler))
    refused(NOT_FOUND, "direct-2", lambda: gateway.start("direct-2", handler))
    gateway.create("direct-2", handler)  # the name is free again
    gateway.shutdown("direct-2", handler)  # legal without a stop, even without a start


def test_missing_bundle(gateway: Gateway, created: str, tmp_path: Path) -> None:
    for where in ("", "relative/path", str(tmp_path / "nowhere"), "/etc/passwd"):
        request = task.CreateTaskRequest(id="one", bundle=where)
        refused(
            INVALID,
            "bundle",
            partial(gateway.task.Create, request, timeout=TIMEOUT, metadata=NAMESPACE),
        )


def test_bundle_of_a_sandbox_that_does_not_exist(gateway: Gateway, tmp_path: Path) -> None:
    request = task.CreateTaskRequest(id="one", bundle=bundle(tmp_path / "b", "no-such-pod"))
    refused(NOT_FOUND, "no-such-pod", lambda: gateway.task.Create(request, timeout=TIMEOUT, metadata=NAMESPACE))
    request = task.CreateTaskRequest(id="one", bundle=bundle(tmp_path / "b", "../../etc"))
    refused(INVALID, "bundle", lambda: gateway.task.Create(request, timeout=TIMEOUT, metadata=NAMESPACE))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "config.json"),
        ("{", "config.json"),
        ("[]", "config.json"),
        ("\x00\xff", "config.json"),
        ("[" * 100000, "config.json"),
        ('{"root": {"path": "rootfs"}}', "process"),
        ('{"process": {"args": "sh"}, "root": {"path": "rootfs"}}', "process.args"),
        ('{"process": {"args": []}, "root": {"path": "rootfs"}}', "process.args"),
        ('{"process": {"args": ["/x"]}}', "root"),
        ('{"process": {"args": ["/x"]}, "root": {"path": "rootfs"}, "mounts": [{}]}', "mounts[0]"),
        ('{"process": {"args": ["/x"]}, "root": {"path": "rootfs"}, "linux": {"namespaces": 3}}', "linux.namespaces"),
    ],
    ids=["empty", "cut", "list", "binary", "deep", "no-process", "text-args", "no-args", "no-root", "mount", "linux"],
)
def test_damaged_config(gateway: Gateway, created: str, tmp_path: Path, config: str, words: str) -> None:
    request = task.CreateTaskRequest(id="one", bundle=bundle(tmp_path / "b", created, config))
    refused(INVALID, words, lambda: gateway.task.Create(request, timeout=TIMEOUT, metadata=NAMESPACE))


def test_missing_config(gateway: Gateway, created: str, tmp_path: Path) -> None:
    where = bundle(tmp_path / "b", created)
    (tmp_path / "b" / "config.json").unlink()
    request = task.CreateTaskRequest(id="one", bundle=where)
    refused(INVALID, "config.json", lambda: gateway.task.Create(request, timeout=TIMEOUT, metadata=NAMESPACE))


def test_a_container_twice(gateway: Gateway, bystander: Container, tmp_path: Path) -> None:
    request = task.CreateTaskRequest(id=bystander.id, bundle=bundle(tmp_path / "b", bystander.pod.id))
    refused(EXISTS, bystander.id, lambda: gateway.task.Create(request, timeout=TIMEOUT, metadata=NAMESPACE))


def test_a_running_container_is_neither_deleted_nor_started_again(gateway: Gateway, bystander: Container) -> None:
    state = grpc.StatusCode.FAILED_PRECONDITION
    delete, start = task.DeleteRequest(id=bystander.id), task.StartRequest(id=bystander.id)
    refused(state, bystander.id, lambda: gateway.task.Delete(delete, timeout=TIMEOUT, metadata=NAMESPACE))
    refused(state, bystander.id, lambda: gateway.task.Start(start, timeout=TIMEOUT, metadata=NAMESPACE))


def test_requests_after_delete(node: Node, gateway: Gateway) -> None:
    container = node.pod("other").run(node.engine.programs.exit(0))
    container.wait()
    delete = task.DeleteRequest(id=container.id)

    def gone() -> None:
        gateway.task.Delete(delete, timeout=TIMEOUT, metadata=NAMESPACE)

    # containerd deletes the task when it ends, so this is the second one
    refused(NOT_FOUND, container.id, gone)
    refused(NOT_FOUND, container.id, gone)
    kill = task.KillRequest(id=container.id, signal=9)
    refused(NOT_FOUND, container.id, lambda: gateway.task.Kill(kill, timeout=TIMEOUT, metadata=NAMESPACE))


def test_bad_signal(gateway: Gateway, bystander: Container) -> None:
    for number in (0, 65, 2**31):
        request = task.KillRequest(id=bystander.id, signal=number)
        refused(
            INVALID,
            "signal",
            partial(gateway.task.Kill, request, timeout=TIMEOUT, metadata=NAMESPACE),
        )


def test_checkpoint_names_the_engine(node: Node, gateway: Gateway, bystander: Container) -> None:
    request = task.CheckpointTaskRequest(id=bystander.id, path="/tmp/x")
    name = node.engine.handler.removeprefix("kuasar-")
    refused(
        grpc.StatusCode.UNIMPLEMENTED,
        name,
        lambda: gateway.task.Checkpoint(request, timeout=TIMEOUT, metadata=NAMESPACE),
    )


def test_message_of_17_megabytes(node: Node, gateway: Gateway) -> None:
    request = sandbox.ControllerCreateRequest(sandbox_id="one", sandboxer=node.engine.handler)
    request.options.type_url = "runtime.v1.PodSandboxConfig"
    request.options.value = b"x" * (17 << 20)
    refused(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "",
        lambda: gateway.controller.Create(request, timeout=TIMEOUT, metadata=NAMESPACE),
    )


def test_options_that_are_not_what_they_say(node: Node, gateway: Gateway) -> None:
    request = sandbox.ControllerCreateRequest(sandbox_id="one", sandboxer=node.engine.handler)
    request.options.type_url = "runtime.v1.PodSandboxConfig"
    request.options.value = b"\xff" * 100
    refused(INVALID, "options", lambda: gateway.controller.Create(request, timeout=TIMEOUT, metadata=NAMESPACE))
    request.options.type_url = "no.such.Type"
    refused(INVALID, "options", lambda: gateway.controller.Create(request, timeout=TIMEOUT, metadata=NAMESPACE))


def test_netns_that_does_not_exist(node: Node, gateway: Gateway) -> None:
    request = sandbox.ControllerCreateRequest(
        sandbox_id="direct-3", sandboxer=node.engine.handler, netns_path="/run/netns/no-such"
    )

    def run() -> None:
        gateway.controller.Create(request, timeout=TIMEOUT, metadata=NAMESPACE)
        gateway.start("direct-3", node.engine.handler)

    try:
        error = failed(run)
        assert "/run/netns/no-such" in (error.details() or "")
    finally:
        gateway.shutdown("direct-3", node.engine.handler)


def test_runtime_binary_that_does_not_exist(gateway: Gateway, tmp_path: Path) -> None:
    """The engine is configured with a path at which there is nothing: said when it is first needed, at the latest."""

    def run() -> None:
        gateway.create("direct-4", BROKEN)
        gateway.start("direct-4", BROKEN)
        request = task.CreateTaskRequest(id="one", bundle=bundle(tmp_path / "b", "direct-4"))
        gateway.task.Create(request, timeout=TIMEOUT, metadata=NAMESPACE)

    try:
        error = failed(run)
        assert "/no/such/runtime" in (error.details() or "")
        assert error.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED)
    finally:
        gateway.shutdown("direct-4", BROKEN)


def test_unknown_method(gateway: Gateway) -> None:
    call = gateway.controller.Create
    assert call is not None
    with grpc.insecure_channel(gateway.target, options=[("grpc.default_authority", "localhost")]) as channel:
        method: Any = channel.unary_unary("/containerd.services.sandbox.v1.Controller/NoSuchMethod")
        refused(grpc.StatusCode.UNIMPLEMENTED, "", lambda: method(b"", timeout=TIMEOUT, metadata=NAMESPACE))


def test_a_request_that_is_no_protobuf(gateway: Gateway) -> None:
    with grpc.insecure_channel(gateway.target, options=[("grpc.default_authority", "localhost")]) as channel:
        method: Any = channel.unary_unary("/containerd.services.sandbox.v1.Controller/Create")
        error = failed(lambda: method(b"\xff\xff\xff", timeout=TIMEOUT, metadata=NAMESPACE))
        assert error.code() in (INVALID, grpc.StatusCode.INTERNAL)
