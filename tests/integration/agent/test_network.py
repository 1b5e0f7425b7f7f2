"""The operation ``network`` of a real agent, in a network namespace that plays the guest's."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.core.errors import BackendFailed, InvalidArgument
from tests.integration.agent.harness import running_agent
from tests.integration.net.wires import Namespace, open_card

MAC = "02:00:00:00:00:42"


@pytest.fixture
def guest() -> Iterator[Namespace]:
    namespace = Namespace("guest")
    yield namespace
    namespace.remove()


def test_cards_are_set_up_for_the_pod(base: Path, guest: Namespace) -> None:
    guest.ip("link", "set", "lo", "down")
    card = open_card(guest, "nic0", MAC)
    interface = {"name": "eth0", "mac": MAC, "mtu": 1400}
    interface["addresses"] = [{"address": "10.1.0.2", "prefix": 24}, {"address": "fd00::2", "prefix": 64}]
    routes = [{"dst": "::/0", "gateway": "fd00::1", "interface": "eth0"}]
    routes.append({"dst": "0.0.0.0/0", "gateway": "10.1.0.1", "interface": "eth0"})
    try:
        with running_agent(base, f"t{uuid.uuid4().hex[:8]}", netns=guest.path) as agent:
            reply = agent.run(agent.call("network", interfaces=[interface], routes=routes))
            assert [each["name"] for each in reply["interfaces"]] == ["eth0"]
            assert {route["dst"]: route["gateway"] for route in reply["routes"]} == {
                "::/0": "fd00::1",
                "0.0.0.0/0": "10.1.0.1",
            }
            assert "UP" in guest.json("link", "show", "lo")[0]["flags"]
            with pytest.raises(InvalidArgument, match=r"interfaces\[0\]\.mtu"):
                agent.run(agent.call("network", interfaces=[interface | {"mtu": 1}]))
            with pytest.raises(BackendFailed, match=r"route to 10\.7\.0\.0/16: .*"):
                unreachable = {"dst": "10.7.0.0/16", "gateway": "10.200.0.1", "interface": "eth0"}
                agent.run(agent.call("network", interfaces=[interface], routes=[unreachable]))
            assert agent.run(agent.call("info"))["containers"] == []
    finally:
        os.close(card)
