"""Input to a container's own process, and its terminal, through attach."""

from __future__ import annotations

import pytest

from kuasar.cli.cri import CriError
from tests.e2e.engines import SHELL, TTY
from tests.e2e.harness import Pod


@pytest.mark.needs(SHELL)
def test_attach_carries_input_and_output(pod: Pod) -> None:
    container = pod.run(["sh", "-c", "while read line; do echo got $line; done; echo end"], stdin=True, stdin_once=True)
    with container.attach(stdin=True) as stream:
        stream.send_stdin(b"one\n")
        stream.read_until(b"got one\n")
        stream.send_stdin(b"two\n")
        stream.read_until(b"got two\n")
        stream.close_stdin()
        stream.read_until(b"end\n")
    assert container.wait().exit_code == 0
    container.wait_for_log(b"got one\ngot two\nend\n")


@pytest.mark.needs(SHELL)
def test_stdin_once_ends_with_the_first_client(pod: Pod) -> None:
    container = pod.run(["sh", "-c", "cat; echo ended"], stdin=True, stdin_once=True)
    with container.attach(stdin=True) as stream:
        stream.send_stdin(b"words\n")
        stream.read_until(b"words\n")
    assert container.wait().exit_code == 0
    container.wait_for_log(b"words\nended\n")


@pytest.mark.needs(SHELL)
def test_stdin_stays_open_for_further_clients(pod: Pod) -> None:
    container = pod.run(["cat"], stdin=True)
    for words in (b"first\n", b"second\n"):
        with container.attach(stdin=True) as stream:
            stream.send_stdin(words)
            stream.read_until(words)
    assert container.running()
    container.wait_for_log(b"first\nsecond\n")


@pytest.mark.needs(SHELL)
def test_without_stdin_there_is_nothing_to_read(pod: Pod) -> None:
    container = pod.run(["sh", "-c", "cat; echo nothing"])
    assert container.wait().exit_code == 0
    assert container.wait_for_log(b"nothing\n") == b"nothing\n"


@pytest.mark.needs(SHELL, TTY)
def test_attach_to_a_terminal_and_resize(pod: Pod) -> None:
    container = pod.run(["sh"], tty=True, stdin=True)
    with container.attach(tty=True, stdin=True) as stream:
        stream.resize(90, 33)
        stream.send_stdin(b"until [ \"$(stty size)\" = '33 90' ]; do :; done; echo 'resi''zed'\n")
        stream.read_until(b"resized\r\n")
        stream.send_stdin(b"exit 9\n")
    assert container.wait().exit_code == 9


@pytest.mark.needs(SHELL)
def test_attach_to_what_does_not_run_is_refused(pod: Pod) -> None:
    container = pod.run(pod.engine.programs.exit(0))
    container.wait()
    with pytest.raises(CriError, match=r"(?i)state|not running|exited"), container.attach() as stream:
        stream.wait()
