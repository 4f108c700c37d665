"""Name servers of a container: on its network, and on the loopback of its network namespace, as Docker has one."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from hawse.host import network_namespace
from tests.support.bundles import write
from tests.support.netns import Namespace, cable
from tests.support.networks import BOX, bundle_in
from tests.support.programs import compiled
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm


def serve_names(namespace: Namespace, address: str, answer: str) -> ExitStack:
    """A name server at this address of the namespace, which answers every query for an A record with ``answer``."""
    server = network_namespace.within(namespace.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def answered(query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5
        record = b"\xc0\x0c" + query[end - 4 : end] + (60).to_bytes(4, "big") + b"\0\x04" + socket.inet_aton(answer)
        records = 1 if query[end - 4 : end] == b"\0\x01\0\x01" else 0  # only IPv4 addresses are known
        return query[:2] + b"\x81\x80\0\x01" + records.to_bytes(2, "big") + bytes(4) + query[12:end] + record * records

    def datagrams() -> None:
        while True:
            query, peer = server.recvfrom(65535)
            if not query:
                return
            server.sendto(answered(query), peer)

    undo = ExitStack()
    undo.enter_context(server)
    server.bind((address, 53))
    thread = threading.Thread(target=datagrams)
    thread.start()

    def end() -> None:
        with network_namespace.within(namespace.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as last:
            last.sendto(b"", (address, 53))
        thread.join()

    undo.callback(end)
    return undo


def test_names_are_resolved_by_a_server_on_the_network(
    runtime: Runtime, tmp_path: Path, inside: Namespace, outside: Namespace
) -> None:
    cable(inside, outside, "eth0", net=1)
    bundle = bundle_in(tmp_path / "bundle", f"{BOX} nslookup name.example.", inside.path)
    Path(bundle, "rootfs", "etc", "resolv.conf").write_text("nameserver 10.77.1.1\n")
    with serve_names(outside, "10.77.1.1", "10.1.2.3"):
        result = runtime("run", "--bundle", bundle, "c1")
    assert "10.1.2.3" in result.output, result


def bundle_of_docker(tmp_path: Path, script: str, network: str) -> str:
    """A bundle as by :func:`bundle_in`, with the name server of Docker's networks."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.11\noptions ndots:0\n")
    bundle = bundle_in(tmp_path / "bundle", script, network)
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    mount = {"destination": "/etc/resolv.conf", "type": "bind", "source": f"{tmp_path}/resolv.conf"}
    spec["mounts"].append(mount | {"options": ["rbind", "ro"]})
    write(bundle, spec)
    return bundle


def test_names_are_resolved_by_a_server_on_the_namespaces_loopback(
    runtime: Runtime, tmp_path: Path, inside: Namespace
) -> None:
    """Docker's name server is at 127.0.0.11, in the network namespace that the engine has created."""
    bundle = bundle_of_docker(tmp_path, f"{BOX} nslookup -type=a anything; {BOX} netstat -lnu", inside.path)
    with serve_names(inside, "127.0.0.11", "192.0.2.7"):
        result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 0, result
    assert "192.0.2.7" in result.output
    assert "127.0.0.11:53" in result.output


def test_invalid_queries_do_not_end_the_sandbox(runtime: Runtime, tmp_path: Path, inside: Namespace) -> None:
    """Any program can send them, such as `echo x | nc -u 127.0.0.11 53`."""
    script = (
        f"/bin/send && printf '\\0\\0' | {BOX} nc 127.0.0.11 53 && printf '\\0\\1x' | {BOX} nc 127.0.0.11 53 &&"
        f"{BOX} nslookup -type=a anything"
    )
    bundle = bundle_of_docker(tmp_path, script, inside.path)
    source = """
        #include <arpa/inet.h>
        int main(void) {
            struct sockaddr_in to = {AF_INET, htons(53), {inet_addr("127.0.0.11")}, {0}};
            return sendto(socket(AF_INET, SOCK_DGRAM, 0), "x\\n", 2, 0, (void *)&to, sizeof to) != 2;
        }
    """
    shutil.copy(compiled(source), f"{bundle}/rootfs/bin/send")
    with serve_names(inside, "127.0.0.11", "192.0.2.7"):
        result = runtime("run", "--bundle", bundle, "c1")
    assert (result.code, result.errors) == (0, "")
    assert "192.0.2.7" in result.output


def test_guest_has_no_relay_when_resolv_conf_names_no_loopback_address(
    runtime: Runtime, tmp_path: Path, inside: Namespace
) -> None:
    """Otherwise the relay would occupy the port of a name server that the container may run."""
    result = runtime("run", "--bundle", bundle_in(tmp_path / "bundle", f"{BOX} netstat -lnu", inside.path), "c1")
    assert result.code == 0, result
    assert ":53 " not in result.output
