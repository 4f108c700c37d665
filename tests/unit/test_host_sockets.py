"""Bind-mounted sockets and FIFOs of the host: which are forwarded, and which cause a warning."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.oci.guest import host_sockets
from hawse.oci.guest.host_sockets import FIFO, SOCKET, STREAM, Special, find_special, obstacle, patterns_of
from hawse.oci.guest.specification import GuestPlan, plan_guest
from hawse.oci.load import load_bundle
from hawse.patterns import is_path_pattern, matches_path
from tests.support.bundles import specification

AGENT = Special(SOCKET, "/run/spire/agent.sock", 0o777, 0, 0)


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Path]:
    """A socket of each kind, one that no process has open, a FIFO, a file, and links."""
    kinds = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM, "packets": socket.SOCK_SEQPACKET}
    opened = []
    for name, kind in kinds.items():
        bound = socket.socket(socket.AF_UNIX, kind)
        bound.bind(f"{tmp_path}/{name}")
        if name != "datagram":
            bound.listen()
        opened.append(bound)
    gone = socket.socket(socket.AF_UNIX)
    gone.bind(f"{tmp_path}/gone")
    gone.close()
    os.mkfifo(tmp_path / "fifo", 0o640)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("stream")
    yield tmp_path
    for bound in opened:
        bound.setblocking(False)
        with pytest.raises(BlockingIOError):  # no peer has received data
            bound.accept() if bound.type != socket.SOCK_DGRAM else bound.recv(1)
        bound.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("stream", SOCKET), ("datagram", SOCKET), ("link", SOCKET), ("gone", SOCKET), ("fifo", FIFO), ("file", ""),
     ("none", "")],
)  # fmt: skip
def test_sockets_and_fifos_are_found_where_links_lead(sockets: Path, name: str, kind: str) -> None:
    special = find_special(f"{sockets}/{name}")
    assert (special.kind if special else "") == kind
    if name == "link":
        assert special is not None
        assert special.path == f"{sockets}/stream"
    if name == "fifo":
        assert special == Special(FIFO, f"{sockets}/fifo", 0o640, 0, 0)


def test_descriptors_of_processes_are_not_sockets_to_forward() -> None:
    reading, writing = os.pipe()
    try:
        assert find_special(f"/proc/self/fd/{reading}") is None
        assert find_special(f"/dev/fd/{writing}") is None
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("name", "expected"), [("stream", "stream"), ("packets", "stream"), ("gone", "stream"), ("datagram", "datagram")]
)
def test_type_of_a_socket_is_found_without_a_message(sockets: Path, name: str, expected: str) -> None:
    assert host_sockets.type_of(f"{sockets}/{name}") == expected


@pytest.mark.parametrize(
    ("special", "patterns", "words"),
    [
        (AGENT, ["/run/spire/agent.sock"], ""),
        (AGENT, ["/x", "/run/*/agent.sock"], ""),
        (AGENT, [], "connections to it are refused in the container"),
        (AGENT, ["/run/*"], "[an administrator can forward it with share.forward_sockets"),
        (
            Special(FIFO, "/run/f", 0o600, 0, 0),
            ["/run/f"],
            "/run/f is a FIFO of the host: it connects only containers of the same",
        ),
    ],
)
def test_socket_that_is_not_forwarded_is_a_warning_with_its_path(
    special: Special, patterns: list[str], words: str
) -> None:
    text = obstacle("mounts[1].source", special, patterns, type_of=lambda _: STREAM)
    assert words in text if words else text == ""
    assert not words or text.startswith(f"mounts[1].source: {special.path} is a {special.kind} of the host")


def test_socket_of_datagrams_is_not_forwarded() -> None:
    text = obstacle("mounts[1].source", AGENT, [AGENT.path], type_of=lambda _: "datagram")
    assert "for datagrams: hawse forwards only stream sockets" in text


def test_socket_of_unknown_type_is_not_forwarded() -> None:
    assert "No such file" in obstacle("mounts[1].source", Special(SOCKET, "/none", 0, 0, 0), ["/none"])


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/run/a", "/run/a", True),
        ("/run/a", "/run/a/b", False),
        ("/run/*.sock", "/run/a.sock", True),
        ("/run/*.sock", "/run/x/a.sock", False),
        ("/run/*", "/run/x/a.sock", False),
        ("/*/*", "/run/a", True),
        ("/run/[ab]", "/run/b", True),
        ("/run/?", "/run/b", True),
        ("/run/A", "/run/a", False),
    ],
)
def test_wildcard_stands_for_a_part_of_a_path(pattern: str, path: str, expected: bool) -> None:
    assert matches_path(path, pattern) is expected
    assert is_path_pattern(pattern)


@pytest.mark.parametrize("pattern", ["", "/", "*", "run/a", "/run/", "/run/../a", "/run/./a", "//run/a"])
def test_pattern_is_an_absolute_path(pattern: str) -> None:
    assert not is_path_pattern(pattern)


def test_annotation_adds_to_the_configuration() -> None:
    annotations = {"hawse.forward-sockets": " /run/a , /run/b,"}
    assert patterns_of(annotations, ("/run/c",)) == ("/run/c", "/run/a", "/run/b")
    assert patterns_of({}, ("/run/c",)) == ("/run/c",)
    with pytest.raises(ConfigError, match=r"annotations: hawse\.forward-sockets: 'true' is not an absolute path"):
        patterns_of({"hawse.forward-sockets": "true"}, ())


def planned(directory: Path, *mounts: dict[str, Any], env: tuple[str, ...] = (), forwarded: str = "") -> GuestPlan:
    spec = specification(["/bin/true"])
    (directory / "rootfs").mkdir(exist_ok=True)
    spec["mounts"] = [{"type": "bind", "options": ["bind"], **mount} for mount in mounts]
    spec["process"]["env"] = list(env)
    (directory / "config.json").write_text(json.dumps(spec))
    return plan_guest(load_bundle(str(directory)), container="c1", forwarded=[forwarded])


@pytest.mark.parametrize("name", ["stream", "datagram", "fifo"])
def test_mount_that_is_not_forwarded_is_shared_as_a_file_with_a_warning(sockets: Path, name: str) -> None:
    container = planned(sockets, {"destination": "/s", "source": f"{sockets}/{name}"})
    assert (container.spec["mounts"][0]["source"], container.mounts.sockets) == ("/run/hawse/share/c1/mount0", {})
    assert (container.shares[1].source, container.shares[1].is_dir) == (f"{sockets}/{name}", False)
    [(level, text)] = container.notes
    assert level == "warning"
    assert f"mounts[0].source: {sockets}/{name} is a " in text


def test_forwarded_socket_is_the_guests_with_the_hosts_mode_and_owners(sockets: Path) -> None:
    os.chmod(sockets / "stream", 0o660)
    os.chown(sockets / "stream", 7, 8)
    source = str(sockets / "link")
    container = planned(sockets, {"destination": "/s", "source": source}, forwarded=f"{sockets}/stream")
    assert container.spec["mounts"][0]["source"] == "/run/hawse/sockets/c1/mount0"
    assert container.mounts.sockets == {"mount0": Special(SOCKET, "", 0o660, 7, 8)}
    assert container.notes == ()
    maps = {f"{kind}Mappings": [{"containerID": 0, "hostID": 100000, "size": 9}] for kind in ("uid", "gid")}
    mapped = planned(sockets, {"destination": "/s", "source": source, **maps}, forwarded=f"{sockets}/stream")
    assert [(special.uid, special.gid) for special in mapped.mounts.sockets.values()] == [(100007, 100008)]


def test_socket_in_dev_is_the_hosts(sockets: Path) -> None:
    """For example /dev/log, which the guest does not have."""
    place = f"/dev/hawse-test-{os.getpid()}"
    os.symlink(sockets / "stream", place)
    try:
        container = planned(sockets, {"destination": "/dev/log", "source": place})
    finally:
        os.unlink(place)
    assert container.shares[1].source == f"{sockets}/stream"
    assert len(container.notes) == 1
    assert container.spec["mounts"][0]["source"] == "/run/hawse/share/c1/mount0"


def test_socket_for_notifications_is_passed_on_otherwise(sockets: Path) -> None:
    container = planned(
        sockets, {"destination": "/run/n", "source": f"{sockets}/datagram"}, env=("NOTIFY_SOCKET=/run/n",)
    )  # fmt: skip
    assert container.notes == ()
