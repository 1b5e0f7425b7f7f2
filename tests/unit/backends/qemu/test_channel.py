"""Which channel to the agent a machine gets, and what is said when the wanted one is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kuasar.backends.qemu.channel import choose
from kuasar.backends.vsock_daemon import argv
from kuasar.core.config import ConfigError, Engine, parse
from kuasar.core.errors import BackendFailed

NO_DEVICE = "/dev/no-vhost-vsock"
NULL = "/dev/null"
"""Can be opened, which is what is asked of a device."""


@pytest.fixture
def daemon(tmp_path: Path) -> str:
    """A program in the daemon's place."""
    path = tmp_path / "vhost-device-vsock"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return os.path.realpath(path)


def settings(channel: str, daemon: str = "/no/such/daemon", template: bool = True) -> Engine:
    return Engine(kind="qemu", channel=channel, vhost_device_vsock=daemon, template=template)


def test_the_hosts_vsock_comes_first(daemon: str) -> None:
    assert choose(settings("auto", daemon), NULL) == ("vsock", "")
    assert choose(settings("auto", daemon, template=False), NULL) == ("vsock", "")


def test_a_daemon_is_for_machines_that_boot(daemon: str) -> None:
    assert choose(settings("auto", daemon, template=False), NO_DEVICE) == ("vhost-user-vsock", daemon)
    assert choose(settings("auto", daemon), NO_DEVICE) == ("virtio-serial", "")


def test_a_serial_port_is_always_there() -> None:
    assert choose(settings("auto", template=False), NO_DEVICE) == ("virtio-serial", "")


@pytest.mark.parametrize("device", [NULL, NO_DEVICE])
def test_the_operators_word_counts(daemon: str, device: str) -> None:
    assert choose(settings("vhost-user-vsock", daemon), device) == ("vhost-user-vsock", daemon)
    assert choose(settings("virtio-serial", daemon, template=False), device) == ("virtio-serial", "")


def test_what_is_wanted_and_not_there_is_refused_with_the_reason() -> None:
    with pytest.raises(BackendFailed, match=r'channel = "vsock" cannot be used: /dev/no-vhost-vsock: No such file'):
        choose(settings("vsock"), NO_DEVICE)
    with pytest.raises(BackendFailed, match=r'"vhost-user-vsock" cannot be used: there is no program /no/such/daemon'):
        choose(settings("vhost-user-vsock"), NULL)


def test_an_unknown_channel_is_named_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"engines\.qemu\.channel: 'pigeon' is none of auto, vsock"):
        parse({"engines": {"qemu": {"channel": "pigeon"}}, "sandboxers": {}})


def test_the_daemon_reaches_its_directory_by_a_descriptor_only() -> None:
    assert argv("/bin/daemon", 3) == [
        "/bin/daemon",
        "--guest-cid=3",
        "--socket=/proc/self/fd/3/device.sock",
        "--uds-path=/proc/self/fd/3/ports.sock",
    ]
