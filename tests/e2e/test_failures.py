"""What cannot work fails with a message that names the reason, and harms nothing else in the pod."""

from __future__ import annotations

import pytest

from kuasar.api.gen.cri.v1.container_pb2 import ContainerState
from kuasar.cli.cri import CriError
from tests.e2e.engines import SHELL, WASM
from tests.e2e.harness import Node, Pod


def assert_still_usable(pod: Pod) -> None:
    """Another container runs in the pod."""
    command, expected = pod.engine.programs.say("still here")
    container = pod.run(command, "after")
    assert container.wait().exit_code == 0
    container.wait_for_log(expected.rstrip(b"\n"))


def test_missing_program_is_named(pod: Pod) -> None:
    container = pod.create(["/no/such/program"])
    with pytest.raises(CriError, match="/no/such/program"):
        container.start()
    status = container.status()
    assert status.state == ContainerState.CONTAINER_EXITED
    assert status.exit_code != 0
    assert_still_usable(pod)


@pytest.mark.needs(SHELL)
def test_program_that_is_not_executable_is_named(pod: Pod) -> None:
    with pytest.raises(CriError, match=r"/etc/passwd.*(?i:permission denied)"):
        pod.run(["/etc/passwd"])
    assert_still_usable(pod)


@pytest.mark.needs(WASM)
def test_program_that_is_not_a_module_is_named(pod: Pod) -> None:
    with pytest.raises(CriError, match="/data/greeting"):
        pod.run(["/data/greeting"])
    assert_still_usable(pod)


@pytest.mark.needs(SHELL)
def test_bad_arguments_are_the_program_s_affair(pod: Pod) -> None:
    container = pod.run(["sleep", "a-while"])
    assert container.wait().exit_code == 1
    container.wait_for_log(b"invalid number", "stderr")


@pytest.mark.needs(SHELL)
def test_missing_working_directory_is_made_or_named(pod: Pod) -> None:
    """runc makes it."""
    container = pod.run(["pwd"], working_dir="/not/there/yet")
    assert container.wait().exit_code == 0
    container.wait_for_log(b"/not/there/yet\n")


def test_unknown_image_is_named(pod: Pod) -> None:
    with pytest.raises(CriError, match="no-such-image"):
        pod.create(pod.engine.programs.idle(), image="localhost/no-such-image:1")


def test_failing_again_and_again_uses_nothing_up(pod: Pod) -> None:
    for _ in range(5):
        container = pod.create(["/no/such/program"])
        with pytest.raises(CriError):
            container.start()
        container.remove()
    assert_still_usable(pod)


def test_one_pod_s_failure_is_not_another_s(node: Node) -> None:
    bystander = node.pod("bystander").run_idle()
    with pytest.raises(CriError):
        node.pod("victim").run(["/no/such/program"])
    assert bystander.running()


def test_same_pod_twice_is_refused(node: Node) -> None:
    pod = node.pod("twice", uid="same")
    with pytest.raises(CriError, match=r"(?i)reserved|exists"):
        node.pod("twice", uid="same")
    assert pod.ready
