"""Queries of the host's network namespaces, and the interfaces that a sandbox uses."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from hawse.errors import ConfigError
from hawse.host import network_namespace
from tests.support.monitor import new_network
from tests.support.netns import run


@pytest.fixture
def network() -> Iterator[int]:
    """A descriptor of a new namespace."""
    with new_network() as path:
        fd = os.open(path, os.O_RDONLY)
        yield fd
        os.close(fd)


@pytest.mark.parametrize(
    ("name", "tap"),
    [("hawse2", "hawse2"), ("hawse", ""), ("hawse12", "hawse12"), ("hawseX", ""), ("eth0", ""), ("xhawse2", "")],
)
def test_taps_of_hawse_are_recognized_by_their_names(name: str, tap: str) -> None:
    assert network_namespace.tap_name_of(name) == tap
    assert network_namespace.tap_name_of(network_namespace.tap_name(7)) == "hawse7"


def test_sandbox_uses_all_interfaces_that_are_up_except_loopback_and_taps(network: int) -> None:
    def make() -> dict[int, str]:
        for words in (
            "tuntap add mode tap name eth0", "link set eth0 up", "tuntap add mode tap name eth1",
            "tuntap add mode tap name hawse5", "link set hawse5 up", "link set lo up",
        ):  # fmt: skip
            run("ip", *words.split())
        return network_namespace.interfaces()

    [(index, name)] = network_namespace.within(network, make).items()
    assert (name, index > 1) == ("eth0", True)


def test_query_returns_its_result_or_raises_its_error(network: int) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    inside = network_namespace.within(network, lambda: os.readlink("/proc/thread-self/ns/net"))
    assert inside != before
    assert os.readlink("/proc/thread-self/ns/net") == before
    with pytest.raises(ZeroDivisionError):
        network_namespace.within(network, lambda: 1 // 0)
    assert network_namespace.within(network, lambda: None) is None


def test_cookie_belongs_to_one_namespace(network: int) -> None:
    again = os.open(f"/proc/self/fd/{network}", os.O_RDONLY)
    with new_network() as path:
        other = os.open(path, os.O_RDONLY)
        assert network_namespace.cookie(network) == network_namespace.cookie(again) != network_namespace.cookie(other)
        assert network_namespace.cookie(network) > 0
        os.close(other)
    os.close(again)


def test_namespace_is_checked_and_opened(network: int) -> None:
    network_namespace.check(network, "x")
    fd = network_namespace.open_path(f"/proc/self/fd/{network}")
    assert not os.get_inheritable(fd)
    assert os.fstat(fd).st_ino == os.fstat(network).st_ino
    os.close(fd)


@pytest.mark.parametrize("path", ["/etc", "/proc/self/ns/net"])
def test_refused_path_leaves_no_descriptor(path: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError):
        network_namespace.open_path(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_entering_a_namespace_moves_only_one_thread(network: int) -> None:
    seen: list[str] = []

    def move() -> None:
        seen.append(os.readlink("/proc/thread-self/ns/net"))
        network_namespace.enter(network)
        seen.append(os.readlink("/proc/thread-self/ns/net"))
        network_namespace.leave()
        seen.append(os.readlink("/proc/thread-self/ns/net"))
        try:
            network_namespace.enter(-1)
        except OSError as error:
            seen.append(str(error.strerror))

    thread = threading.Thread(target=move)
    thread.start()
    thread.join()
    assert len(set(seen)) == 4
    assert seen[3] == "Bad file descriptor"
    assert seen[0] == os.readlink("/proc/self/ns/net")
