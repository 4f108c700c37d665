"""The record of redirected interfaces: the namespace that it belongs to, and the changes that its undoing keeps."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.errors import HostError
from hawse.host import network_namespace, redirects
from hawse.monitor.network.host_network import Network
from tests.support.netns import Namespace, cable


def note(directory: Path, namespace: Namespace, *, cookie: int | None = None) -> str:
    """A record for the namespace; returns its directory."""
    directory.mkdir()
    cookie = namespace.cookie() if cookie is None else cookie
    redirects.note(f"{directory}/network", {"path": namespace.path, "inode": namespace.inode(), "cookie": cookie})
    return str(directory)


def test_record_belongs_only_to_its_own_namespace(inside: Namespace, outside: Namespace, tmp_path: Path) -> None:
    """The inode number of a namespace may be reused later, its cookie never."""
    mine = note(tmp_path / "mine", inside)
    assert redirects.is_of(mine, inside.fd)
    assert not redirects.is_of(mine, outside.fd)
    assert not redirects.is_of(note(tmp_path / "old", inside, cookie=inside.cookie() + 1), inside.fd)
    assert not redirects.is_of(str(tmp_path / "none"), inside.fd)


def test_incomplete_line_of_a_record_is_ignored(inside: Namespace, tmp_path: Path) -> None:
    """Its writer was killed before it changed the interface."""
    mine = note(tmp_path / "mine", inside)
    with open(f"{mine}/network", "a") as file:
        file.write('{"index": 2, "na')
    redirects.release(mine)
    assert os.listdir(mine) == []


@pytest.fixture
def redirected(inside: Namespace, outside: Namespace, tmp_path: Path) -> Iterator[dict[str, object]]:
    """The entry of eth0, which is redirected to a tap that was removed."""
    cable(inside, outside, "eth0", net=1)
    (tmp_path / "sandbox").mkdir()
    network = Network(inside.path, str(tmp_path / "sandbox"))
    network.look()
    joining = network.take_joining()
    assert joining is not None
    [(interface, tap)], _ = joining.wait()
    os.close(tap)
    yield {"index": interface["index"], "name": "eth0", "qdisc": True}
    network.close()


def test_interface_is_undone_when_index_and_name_are_the_same(inside: Namespace, redirected: dict[str, object]) -> None:
    """Another interface may have the name or the index now. A qdisc of another program is kept, without hawse's
    filters."""

    def undo(**changes: object) -> tuple[bool, bool]:
        """Whether the filters and the qdisc remain."""
        network_namespace.within(inside.fd, lambda: redirects.undo([redirected | changes]))
        return "mirred" in inside.traffic_control(), "ingress" in inside.tc("qdisc show dev eth0")

    assert undo(name="eth1") == (True, True)
    assert undo(index=9999) == (True, True)
    assert undo(qdisc=False) == (False, True)
    assert undo() == (False, False)
    assert undo() == (False, False), "removed interfaces need no undoing"


def test_redirection_that_cannot_be_removed_is_an_error_and_stays_on_record(inside: Namespace, tmp_path: Path) -> None:
    lo = {"index": socket.if_nametoindex("lo"), "name": "lo", "qdisc": True}
    os.seteuid(65534)
    try:
        with pytest.raises(HostError, match="interface lo: cannot remove its redirection: Operation not") as caught:
            redirects.undo([lo])
    finally:
        os.seteuid(0)
    assert caught.value.hint == "run tc qdisc del dev lo ingress"
    mine = note(tmp_path / "mine", inside)
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(HostError, match="cannot enter the network namespace"):
        redirects.release(mine, namespace=fd)
    os.close(fd)
    assert os.listdir(mine) == ["network"]


@pytest.mark.usefixtures("redirected")
def test_namespace_is_searched_at_other_mounts_if_its_path_has_changed(inside: Namespace, tmp_path: Path) -> None:
    """The engine's mount now shows another file; the namespace is mounted at another path as well."""
    directory = tmp_path / "other"
    directory.mkdir()
    where = {"path": "/dev/null", "inode": inside.inode(), "cookie": inside.cookie()}
    redirects.note(f"{directory}/network", where)
    index = inside.shown("link show eth0")[0]["ifindex"]
    redirects.note(f"{directory}/network", {"index": index, "name": "eth0", "qdisc": True})
    before = len(os.listdir("/proc/self/fd"))
    redirects.release(str(directory))
    assert inside.traffic_control() == ""
    assert len(os.listdir("/proc/self/fd")) == before
