"""Kernel modules that containers cause a kernel to load, by real use in a container with this machine's programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hawse.vm.image.build import build
from tests.support.bundles import add_devices, specification, write
from tests.support.caches import CACHE
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

NODES = [
    ("/dev/net/tun", 10, 200), ("/dev/vhost-net", 10, 238), ("/dev/vhost-vsock", 10, 241), ("/dev/fuse", 10, 229),
    ("/dev/loop-control", 10, 237), ("/dev/ppp", 108, 0), ("/dev/uhid", 10, 239),
]  # fmt: skip
#: Prints a line for each failing command, and nothing if the kernel supports everything.
TRY = 'try() { "$@" >/dev/null 2>/tmp/said || echo "$*: $(cat /tmp/said)"; }\n'
OPEN = "\n".join(f"try sh -c 'exec 3<>{path}'" for path, _, _ in NODES)
SOCKETS = """
import socket
def ask(name, family, kind, protocol, *options):
    try:
        with socket.socket(family, kind, protocol) as opened:
            for option in options:
                opened.setsockopt(*option)
    except OSError as error:
        print(name, error.strerror)
ask("sctp", socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
ask("vsock", socket.AF_VSOCK, socket.SOCK_STREAM, 0)
ask("bbr", socket.AF_INET, socket.SOCK_STREAM, 0, (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr"))
ask("key", socket.AF_KEY, socket.SOCK_RAW, 2)
with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as opened:
    opened.bind(("hash", "hmac(sha256)"))
"""
LINKS = """
try ip tuntap add dev tap9 mode tap
try ip link add veth8 type veth peer name veth9
try ip link add bridge9 type bridge
try ip link add macvlan9 link veth8 type macvlan mode bridge
try ip link add vxlan9 type vxlan id 9 dstport 4789 dev veth8
try ip link add wg9 type wireguard
try ip link add gre9 type gre local 10.9.0.1 remote 10.9.0.2
try ip link set tap9 master bridge9
try tc qdisc add dev veth8 clsact
try tc filter add dev veth8 ingress matchall action mirred egress redirect dev bridge9
try tc qdisc add dev veth9 root netem delay 5ms
"""
FIREWALL = """
for program in iptables-legacy ip6tables-legacy iptables-nft; do
    try $program -w -t nat -A POSTROUTING -j MASQUERADE
    try $program -w -A INPUT -m conntrack --ctstate NEW -m comment --comment new -j ACCEPT
done
try iptables-legacy -w -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 15001
try nft add table inet nine
try nft add chain inet nine post '{ type nat hook postrouting priority 100; }'
try nft add rule inet nine post ct state new counter masquerade
"""
NET_ADMIN = ["CAP_NET_ADMIN", "CAP_NET_RAW"]


def make_bundle(directory: str, script: str, *capabilities: str) -> str:
    """A bundle whose shell and programs are those of this machine; returns its path."""
    for name in ("usr", "proc", "sys", "dev", "tmp", "run", "etc"):
        os.makedirs(f"{directory}/rootfs/{name}")
    for name in ("bin", "sbin", "lib", "lib64"):
        os.symlink(f"usr/{name}", f"{directory}/rootfs/{name}")
    sets = {kind: list(capabilities) for kind in ("bounding", "effective", "permitted")}
    environment = ["PATH=/usr/sbin:/usr/bin"]
    spec: dict[str, Any] = specification(["/bin/sh", "-c", TRY + script], capabilities=sets, env=environment)
    for path in ("/usr", "/etc"):
        spec["mounts"].append({"destination": path, "source": path, "type": "bind", "options": ["rbind", "ro"]})
    add_devices(spec, NODES)
    write(directory, spec)
    return directory


def outcome(runtime: Runtime, bundle: str) -> list[str]:
    """The output of the script, without the warning that this QEMU creates no special files with 9p."""
    done = runtime("run", "--bundle", bundle, "c1", seconds=120)
    assert done.code == 0, done
    lines = done.output.splitlines() + done.errors.splitlines()
    return [line for line in lines if "files are shared by 9p, and QEMU" not in line]


def asks(*families: str) -> str:
    """Open each node and a socket of each family."""
    more = "".join(f'\nask("{name}", {words})' for name, words in (family.split(" ", 1) for family in families))
    return f"{OPEN}\npython3 -IS -c '{SOCKETS}{more}'\n"


#: This module is not in the list.
UNKNOWN = ["rxrpc Address family not supported by protocol"]
RXRPC = "rxrpc 33, socket.SOCK_DGRAM, 2"


@pytest.mark.parametrize(
    ("configuration", "more"),
    [("[template]\nenabled = false\n", LINKS + FIREWALL), ('[vm]\nshare = "9p"\n', "")],
    ids=["virtiofs", "9p"],
)
def test_guest_loads_modules_that_a_container_needs(
    runtime: Runtime, tmp_path: Path, configuration: str, more: str
) -> None:
    """A module that is not in the list stays missing."""
    runtime.configure(configuration)
    output = outcome(runtime, make_bundle(f"{tmp_path}/bundle", asks(RXRPC) + more, *NET_ADMIN))
    assert [line.endswith(end) for line, end in zip(output, UNKNOWN, strict=True)] == [True], output


def test_restored_guest_loads_modules_for_a_container_without_capabilities(runtime: Runtime, tmp_path: Path) -> None:
    """Operations that need CAP_NET_ADMIN on a host need it here, too. The legacy firewall is loaded for containers with
    it."""
    assert runtime("template", "build", seconds=120).code == 0
    script = asks(RXRPC) + "grep -c -e ^ip_tables -e ^ip6_tables /proc/modules || true"
    output = outcome(runtime, make_bundle(f"{tmp_path}/bundle", script))
    expected = ["/dev/ppp: Operation not permitted", "bbr No such file or directory", "key Operation not permitted"]
    expected += [*UNKNOWN, "0"]
    assert [line.endswith(end) for line, end in zip(output, expected, strict=True)] == [True] * len(expected), output


def test_administrator_adds_modules(runtime: Runtime, tmp_path: Path) -> None:
    """One that the kernel requests, and one that is loaded at the start."""
    tables = '[image]\nextra_modules = ["rxrpc"]\n', '[vm]\nload_modules = ["br-netfilter", "nf_conntrack"]\n'
    runtime.configure("".join(tables))
    bundle = make_bundle(
        f"{tmp_path}/bundle",
        "try cat /proc/sys/net/bridge/bridge-nf-call-iptables /proc/sys/net/netfilter/nf_conntrack_max\n"
        "python3 -IS -c 'import socket; socket.socket(33, socket.SOCK_DGRAM, 2)'",
    )
    built = build(cache=CACHE, progress=print, extra=["rxrpc"])
    assert os.path.exists(f"{built.modules}/kernel/net/rxrpc/rxrpc.ko")
    assert outcome(runtime, bundle) == []
    runtime.configure(tables[0] + '[vm]\nload_modules = ["zfs"]\n')
    refused = runtime("run", "--bundle", bundle, "c1")
    assert (refused.code, "vm.load_modules: zfs: not among the modules of" in refused.errors) == (1, True), refused
