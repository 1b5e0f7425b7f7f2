"""The CRI client's calls, against a gRPC server on a real socket that records what it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from kuasar.api.gen.cri.v1 import container_pb2, image_pb2, pod_pb2, runtime_pb2, stats_pb2
from kuasar.api.gen.cri.v1.common_pb2 import ImageSpec, LinuxContainerResources, NamespaceMode
from kuasar.cli.cri import CriClient, CriError, ExecResult, bind, container_config, pod_config

Answer = Callable[[grpc.ServicerContext], bytes]


class Recorder(grpc.GenericRpcHandler):
    """Takes every call of every service: remembers it, and answers with the bytes prepared for its name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.answers: dict[str, Answer] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        name = handler_call_details.method

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls.append((name, request))
            return self.answers[name](context)

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder()
    unlimited = [("grpc.max_send_message_length", -1)]
    with futures.ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads, handlers=[recorder], options=unlimited)
        server.add_insecure_port(f"unix:{tmp_path}/s")
        server.start()
        yield recorder
        server.stop(None).wait()


@pytest.fixture
def cri(recorder: Recorder, tmp_path: Path) -> Iterator[CriClient]:
    with CriClient(f"unix://{tmp_path}/s", timeout=5) as client:
        yield client


POD = pod_config("p", uid="u")
CONTAINER = container_config("c", "image")
LIMITS = LinuxContainerResources(memory_limit_in_bytes=1)
EVERYWHERE = {"a": "b"}


@pytest.mark.parametrize(
    ("call", "name", "request_", "response", "result"),
    [
        (
            lambda cri: cri.run_pod(POD, "kuasar"),
            "RunPodSandbox",
            pod_pb2.RunPodSandboxRequest(config=POD, runtime_handler="kuasar"),
            pod_pb2.RunPodSandboxResponse(pod_sandbox_id="p1"),
            "p1",
        ),
        (
            lambda cri: cri.stop_pod("p1"),
            "StopPodSandbox",
            pod_pb2.StopPodSandboxRequest(pod_sandbox_id="p1"),
            pod_pb2.StopPodSandboxResponse(),
            None,
        ),
        (
            lambda cri: cri.remove_pod("p1"),
            "RemovePodSandbox",
            pod_pb2.RemovePodSandboxRequest(pod_sandbox_id="p1"),
            pod_pb2.RemovePodSandboxResponse(),
            None,
        ),
        (
            lambda cri: cri.pod_status("p1", verbose=True).info["k"],
            "PodSandboxStatus",
            pod_pb2.PodSandboxStatusRequest(pod_sandbox_id="p1", verbose=True),
            pod_pb2.PodSandboxStatusResponse(info={"k": "v"}),
            "v",
        ),
        (
            lambda cri: [pod.id for pod in cri.list_pods(labels=EVERYWHERE)],
            "ListPodSandbox",
            pod_pb2.ListPodSandboxRequest(filter=pod_pb2.PodSandboxFilter(label_selector=EVERYWHERE)),
            pod_pb2.ListPodSandboxResponse(items=[pod_pb2.PodSandbox(id="p1")]),
            ["p1"],
        ),
        (
            lambda cri: cri.pod_stats("p1").attributes.id,
            "PodSandboxStats",
            stats_pb2.PodSandboxStatsRequest(pod_sandbox_id="p1"),
            stats_pb2.PodSandboxStatsResponse(
                stats=stats_pb2.PodSandboxStats(attributes=stats_pb2.PodSandboxAttributes(id="p1"))
            ),
            "p1",
        ),
        (
            lambda cri: len(cri.list_pod_stats(labels=EVERYWHERE)),
            "ListPodSandboxStats",
            stats_pb2.ListPodSandboxStatsRequest(filter=stats_pb2.PodSandboxStatsFilter(label_selector=EVERYWHERE)),
            stats_pb2.ListPodSandboxStatsResponse(stats=[stats_pb2.PodSandboxStats()] * 2),
            2,
        ),
        (
            lambda cri: cri.create_container("p1", CONTAINER, POD),
            "CreateContainer",
            runtime_pb2.CreateContainerRequest(pod_sandbox_id="p1", config=CONTAINER, sandbox_config=POD),
            container_pb2.CreateContainerResponse(container_id="c1"),
            "c1",
        ),
        (
            lambda cri: cri.start("c1"),
            "StartContainer",
            container_pb2.StartContainerRequest(container_id="c1"),
            container_pb2.StartContainerResponse(),
            None,
        ),
        (
            lambda cri: cri.stop("c1", grace=7),
            "StopContainer",
            container_pb2.StopContainerRequest(container_id="c1", timeout=7),
            container_pb2.StopContainerResponse(),
            None,
        ),
        (
            lambda cri: cri.remove("c1"),
            "RemoveContainer",
            container_pb2.RemoveContainerRequest(container_id="c1"),
            container_pb2.RemoveContainerResponse(),
            None,
        ),
        (
            lambda cri: cri.status("c1", verbose=True).status.exit_code,
            "ContainerStatus",
            container_pb2.ContainerStatusRequest(container_id="c1", verbose=True),
            container_pb2.ContainerStatusResponse(status=container_pb2.ContainerStatus(exit_code=137)),
            137,
        ),
        (
            lambda cri: [container.id for container in cri.list_containers(pod="p1")],
            "ListContainers",
            container_pb2.ListContainersRequest(filter=container_pb2.ContainerFilter(pod_sandbox_id="p1")),
            container_pb2.ListContainersResponse(containers=[container_pb2.Container(id="c1")]),
            ["c1"],
        ),
        (
            lambda cri: cri.stats("c1").cpu.timestamp,
            "ContainerStats",
            stats_pb2.ContainerStatsRequest(container_id="c1"),
            stats_pb2.ContainerStatsResponse(stats=stats_pb2.ContainerStats(cpu=stats_pb2.CpuUsage(timestamp=9))),
            9,
        ),
        (
            lambda cri: len(cri.list_stats(pod="p1")),
            "ListContainerStats",
            stats_pb2.ListContainerStatsRequest(filter=stats_pb2.ContainerStatsFilter(pod_sandbox_id="p1")),
            stats_pb2.ListContainerStatsResponse(stats=[stats_pb2.ContainerStats()]),
            1,
        ),
        (
            lambda cri: cri.update_resources("c1", LIMITS),
            "UpdateContainerResources",
            container_pb2.UpdateContainerResourcesRequest(container_id="c1", linux=LIMITS),
            container_pb2.UpdateContainerResourcesResponse(),
            None,
        ),
        (
            lambda cri: cri.reopen_log("c1"),
            "ReopenContainerLog",
            container_pb2.ReopenContainerLogRequest(container_id="c1"),
            container_pb2.ReopenContainerLogResponse(),
            None,
        ),
        (
            lambda cri: cri.exec_sync("c1", ["echo", "x"], timeout=3),
            "ExecSync",
            container_pb2.ExecSyncRequest(container_id="c1", cmd=["echo", "x"], timeout=3),
            container_pb2.ExecSyncResponse(stdout=b"x\n", stderr=b"e", exit_code=4),
            ExecResult(b"x\n", b"e", 4),
        ),
        (
            lambda cri: cri.version().runtime_name,
            "Version",
            runtime_pb2.VersionRequest(),
            runtime_pb2.VersionResponse(runtime_name="containerd"),
            "containerd",
        ),
        (
            lambda cri: [handler.name for handler in cri.runtime_status().runtime_handlers],
            "Status",
            runtime_pb2.StatusRequest(),
            runtime_pb2.StatusResponse(runtime_handlers=[runtime_pb2.RuntimeHandler(name="kuasar")]),
            ["kuasar"],
        ),
    ],
)
def test_calls_of_the_runtime_service(
    recorder: Recorder,
    cri: CriClient,
    call: Callable[[CriClient], Any],
    name: str,
    request_: Message,
    response: Message,
    result: object,
) -> None:
    recorder.answers[f"/runtime.v1.RuntimeService/{name}"] = lambda _: response.SerializeToString()
    assert call(cri) == result
    [(_, sent)] = recorder.calls
    assert type(request_).FromString(sent) == request_


@pytest.mark.parametrize(
    ("call", "name", "request_", "response", "result"),
    [
        (
            lambda cri: [image.id for image in cri.list_images()],
            "ListImages",
            image_pb2.ListImagesRequest(),
            image_pb2.ListImagesResponse(images=[image_pb2.Image(id="i")]),
            ["i"],
        ),
        (
            lambda cri: cri.image_status("there").id,
            "ImageStatus",
            image_pb2.ImageStatusRequest(image=ImageSpec(image="there")),
            image_pb2.ImageStatusResponse(image=image_pb2.Image(id="i")),
            "i",
        ),
        (
            lambda cri: cri.image_status("missing"),
            "ImageStatus",
            image_pb2.ImageStatusRequest(image=ImageSpec(image="missing")),
            image_pb2.ImageStatusResponse(),
            None,
        ),
        (
            lambda cri: cri.remove_image("there"),
            "RemoveImage",
            image_pb2.RemoveImageRequest(image=ImageSpec(image="there")),
            image_pb2.RemoveImageResponse(),
            None,
        ),
        (
            lambda cri: cri.image_fs_info().image_filesystems[0].fs_id.mountpoint,
            "ImageFsInfo",
            image_pb2.ImageFsInfoRequest(),
            image_pb2.ImageFsInfoResponse(
                image_filesystems=[
                    stats_pb2.FilesystemUsage(fs_id=stats_pb2.FilesystemIdentifier(mountpoint="/images"))
                ]
            ),
            "/images",
        ),
    ],
)
def test_calls_of_the_image_service(
    recorder: Recorder,
    cri: CriClient,
    call: Callable[[CriClient], Any],
    name: str,
    request_: Message,
    response: Message,
    result: object,
) -> None:
    recorder.answers[f"/runtime.v1.ImageService/{name}"] = lambda _: response.SerializeToString()
    assert call(cri) == result
    [(_, sent)] = recorder.calls
    assert type(request_).FromString(sent) == request_


@pytest.mark.parametrize(("tty", "stderr"), [(False, True), (True, False)])
def test_exec_and_attach_ask_for_stderr_only_without_a_terminal(
    recorder: Recorder, cri: CriClient, tty: bool, stderr: bool
) -> None:
    # The URL is one that cannot be streamed from: only what was asked for is of interest here.
    exec_, attach = "/runtime.v1.RuntimeService/Exec", "/runtime.v1.RuntimeService/Attach"
    recorder.answers[exec_] = lambda _: container_pb2.ExecResponse(url="ftp://x").SerializeToString()
    recorder.answers[attach] = lambda _: container_pb2.AttachResponse(url="ftp://x").SerializeToString()
    with pytest.raises(CriError, match="cannot stream from 'ftp://x'"):
        cri.exec_stream("c1", ["sh"], tty=tty, stdin=True)
    with pytest.raises(CriError, match="cannot stream from 'ftp://x'"):
        cri.attach("c1", tty=tty)
    assert container_pb2.ExecRequest.FromString(recorder.calls[0][1]) == container_pb2.ExecRequest(
        container_id="c1", cmd=["sh"], tty=tty, stdin=True, stdout=True, stderr=stderr
    )
    assert container_pb2.AttachRequest.FromString(recorder.calls[1][1]) == container_pb2.AttachRequest(
        container_id="c1", tty=tty, stdin=False, stdout=True, stderr=stderr
    )


def test_an_error_keeps_its_code_and_names_the_call(recorder: Recorder, cri: CriClient) -> None:
    def refuse(context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "no such pod")

    recorder.answers["/runtime.v1.RuntimeService/StopPodSandbox"] = refuse
    with pytest.raises(CriError, match="NOT_FOUND: StopPodSandbox: no such pod") as caught:
        cri.stop_pod("p1")
    assert (caught.value.code, caught.value.message) == (
        grpc.StatusCode.NOT_FOUND,
        "StopPodSandbox: no such pod",
    )


def test_a_call_ends_at_its_deadline(recorder: Recorder, cri: CriClient) -> None:
    gave_up = threading.Event()

    def hang(context: grpc.ServicerContext) -> bytes:
        if context.add_callback(gave_up.set):
            gave_up.wait(5)
        return b""

    recorder.answers["/runtime.v1.RuntimeService/RunPodSandbox"] = hang
    with pytest.raises(CriError) as caught:
        cri.run_pod(POD, timeout=0.1)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert gave_up.wait(5), "the server was not told"


def test_no_containerd_is_unavailable(tmp_path: Path) -> None:
    with CriClient(str(tmp_path / "missing"), timeout=5) as client, pytest.raises(CriError) as caught:
        client.version()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_sixteen_mebibytes_of_output_fit(recorder: Recorder, cri: CriClient) -> None:
    output = bytes(16 << 20)
    answer = container_pb2.ExecSyncResponse(stdout=output).SerializeToString()
    recorder.answers["/runtime.v1.RuntimeService/ExecSync"] = lambda _: answer
    assert cri.exec_sync("c1", ["cat", "/big"]).stdout == output


def test_pods_are_distinct_and_say_which_namespaces_they_have() -> None:
    first, second = pod_config("p"), pod_config("p")
    assert first.metadata.uid != second.metadata.uid
    assert first.hostname == "p"
    options = first.linux.security_context.namespace_options
    assert (options.network, options.pid) == (NamespaceMode.POD, NamespaceMode.CONTAINER)
    on_host = pod_config("p", host_network=True, pid_mode="pod")
    assert on_host.hostname == ""
    options = on_host.linux.security_context.namespace_options
    assert (options.network, options.pid) == (NamespaceMode.NODE, NamespaceMode.POD)


def test_a_container_carries_what_it_was_given() -> None:
    config = container_config(
        "c",
        "image",
        ["sh"],
        ["-c", "true"],
        env={"A": "ä"},
        mounts=[bind("/h", "/c", readonly=True)],
        user=0,
        attempt=2,
    )
    assert (list(config.command), list(config.args)) == (["sh"], ["-c", "true"])
    assert [(pair.key, pair.value) for pair in config.envs] == [("A", "ä".encode())]
    assert [(mount.host_path, mount.container_path, mount.readonly) for mount in config.mounts] == [("/h", "/c", True)]
    assert config.log_path == "c_2.log"
    security = config.linux.security_context
    assert security.HasField("run_as_user")  # user 0 is a choice, no user is none
    assert not security.HasField("run_as_group")
    assert security.namespace_options.pid == NamespaceMode.CONTAINER
