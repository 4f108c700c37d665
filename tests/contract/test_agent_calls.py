"""Calls and frames of the real agent that need no container: order, names, ports, and protocol violations."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.machine.network import raise_loopback
from hawse.errors import VmError
from hawse.host import network_namespace
from hawse.link.frames import CREDIT, DATA, EOF, encode
from hawse.link.streams import STREAMS
from tests.support.agent import Agent
from tests.support.patience import patience

QUERY = bytes(range(12))
ONE = (1).to_bytes(4, "big")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(str(tmp_path / "run"), root=str(tmp_path / "root")) as started:
        yield started


def create(agent: Agent, script: str, *descriptors: str) -> None:
    spec = {"process": {"args": ["/bin/sh", "-c", script], "cwd": "/", "env": []}}
    agent.call(
        "create", container="c1", process=1, descriptors=descriptors, joins={}, devices=[], spec=spec
    )  # fmt: skip


def test_wait_for_a_device_does_not_delay_other_calls(agent: Agent) -> None:
    agent.send("bind_vfio", address="0000:01:00.0", seconds=1000)
    assert agent.call("prepare_template") is None


def test_new_crun_is_prepared_after_one_was_used(agent: Agent) -> None:
    create(agent, "true")
    assert agent.call("prepare_template") is None


def test_call_for_a_device_that_never_appears_is_an_error(agent: Agent) -> None:
    with pytest.raises(Exception, match=r"0000:01:00\.0: the device did not appear in the guest within 0\.1 s"):
        agent.call("bind_vfio", address="0000:01:00.0", seconds=0.1)


def test_name_queries_are_sent_to_the_host(tmp_path: Path) -> None:
    with Agent(str(tmp_path), unshare=("--net",)) as agent:
        agent.event("hello")  # from here on this process is in the agent's network namespace
        network = os.open(f"/proc/{agent.pid}/ns/net", os.O_RDONLY)
        network_namespace.within(network, raise_loopback)
        agent.call("serve_names", servers=["127.0.0.11"])
        agent.call("serve_names", servers=["127.0.0.53"])
        with pytest.raises(VmError, match=r"listen for name queries at 127\.0\.0\.11: Address already in use"):
            agent.call("serve_names", servers=["127.0.0.11"])
        with network_namespace.within(network, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as program:
            program.settimeout(patience(3))
            for number, server in enumerate(("127.0.0.11", "127.0.0.53"), 1):
                program.sendto(QUERY, (server, 53))
                assert agent.event("query") == {"server": server, "transport": "udp", "connection": number}
                agent.call("refuse", connection=number)
        os.close(network)


def test_port_without_a_listener_is_an_error(agent: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(VmError, match=f"^port {port} of the pod: Connection refused"):
        agent.call("connect", process=1, port=port, descriptors=["both"])
    with pytest.raises(Exception, match="connection 1 does not exist in the guest"):
        agent.call("disconnect", process=1)


def test_disconnect_without_a_connection_is_ignored(agent: Agent) -> None:
    assert agent.call("disconnect", process=1) is None


def test_number_of_preserved_descriptors_is_passed_to_crun(agent: Agent) -> None:
    create(agent, "true", "in", "out", "both")
    [call] = agent.crun_calls("create")
    assert call["preserved"] == "3"


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (encode(STREAMS, CREDIT, ONE), "credit for stream 64, which is not sent here"),
        (encode(STREAMS + 1, DATA, b"x"), "data for stream 65, which is sent from here"),
        (encode(STREAMS + 2, EOF), "data for stream 66, which is sent from here"),
        (encode(STREAMS + 1, CREDIT, ONE), "credit of 1 bytes"),
        (encode(STREAMS - 1, DATA, b"x"), "frame for the unknown stream 63"),
        (encode(2 * STREAMS, DATA, b"x"), "frame for the unknown stream 128"),
    ],
)
def test_invalid_frames_end_the_agent(agent: Agent, noise: bytes, words: str) -> None:
    create(agent, "true")
    agent.port.send(noise)
    assert not [frame for frame in agent.frames if frame[1] == DATA]
    assert words in agent.wait()


def test_number_of_a_running_process_is_refused(agent: Agent) -> None:
    create(agent, "true")
    agent.send("exec", container="c1", process=1, descriptors=[], spec={})
    assert list(agent.frames) == []
    assert "process number 1 is in use" in agent.wait()


def test_bug_in_a_call_is_answered_with_an_error(agent: Agent) -> None:
    for method, params in (("start", {}), ("create", {"process": 1, "descriptors": [], "container": "c1"})):
        arguments: dict[str, Any] = params
        with pytest.raises(VmError, match=f"^agent: {method}: TypeError: "):
            agent.ask(method, **arguments)
