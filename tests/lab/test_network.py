"""Interface types that not every host kernel has, but the lab's does: bonds, VLANs, ipvlans, and the netdev of a VF.

The same bundle runs under runc and under hawse, and prints the same, except for interfaces that the guest lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.host import Lab
from tests.lab.steps import LONE_NIC, SECONDS, VIRTUAL, configure, hawse, prove_unchanged, rebind, snapshot
from tests.support.programs import compiled_file

pytestmark = pytest.mark.lab

#: Creates three network namespaces: the container's, ``middle`` with the parents of its ipvlans, and ``far`` at the
#: other ends of all cables. NET is 10.77.NET.1 in ``far`` and 10.77.NET.2 in the container.
_NAMESPACES = """
set -ex
for name in box middle far; do ip netns add $name; ip -n $name link set lo up; done
cable() { ip -n $1 link add $2 type veth peer name $3 netns far; ip -n $1 link set $2 up; ip -n far link set $3 up; }
address() { ip -n far addr add 10.77.$1.1/24 dev $2; ip -n box addr add 10.77.$1.2/24 dev $3; }

# A bond of two veths, without an address on them, and a VLAN over it.
ip -n far link add hub type bridge; ip -n far link set hub up
ip -n box link add bond0 type bond mode active-backup miimon 100
for number in 1 2; do
    ip -n box link add slave$number type veth peer name port$number netns far
    ip -n far link set port$number master hub up
    ip -n box link set slave$number master bond0
    ip -n box link set slave$number up
done
ip -n box link set bond0 up
address 1 hub bond0
ip -n far link add link hub name hub.6 type vlan id 6; ip -n far link set hub.6 up
ip -n box link add link bond0 name bond0.6 type vlan id 6; ip -n box link set bond0.6 up
address 6 hub.6 bond0.6

# VLANs whose parent has an address, and none.
for number in 2 3; do
    vlan=$((number + 2))
    cable box eth$number far$number
    ip -n far link add link far$number name far$number.$vlan type vlan id $vlan; ip -n far link set far$number.$vlan up
    ip -n box link add link eth$number name eth$number.$vlan type vlan id $vlan; ip -n box link set eth$number.$vlan up
    address $vlan far$number.$vlan eth$number.$vlan
done
address 2 far2 eth2

# ipvlans of every mode; in l3 and l3s nobody asks for hardware addresses, and the route is the parent's.
for entry in 11:l2 12:l3 13:l3s; do
    net=${entry%:*} mode=${entry#*:}
    cable middle under$net over$net
    ip -n middle link add ip$mode link under$net type ipvlan mode $mode
    ip -n middle link set ip$mode netns box
    ip -n box link set ip$mode up
    ip -n middle addr add 10.77.$net.3/24 dev under$net
    address $net over$net ip$mode
    mac=$(ip netns exec middle cat /sys/class/net/under$net/address)
    [ $mode = l2 ] || ip -n far neigh add 10.77.$net.2 lladdr $mac dev over$net nud permanent
done
"""
_CLEAR = "for name in box middle far; do ip netns del $name; done"
_BUNDLE = """
import shutil, sys
from tests.support.bundles import make_bundle, write
directory, network, script, program = sys.argv[1:]
rights = dict.fromkeys(("bounding", "effective", "permitted"), ["CAP_NET_RAW"])
spec = make_bundle(directory, ["/bin/sh", "-c", script], capabilities=rights)
for namespace in spec["linux"]["namespaces"]:
    namespace |= {"path": network} if namespace["type"] == "network" else {}
shutil.copy(program, f"{directory}/rootfs/bin/receives")
write(directory, spec)
"""
#: Sends to the multicast group of tests/vm/receives.c on the interface with an address, until it is killed.
_SEND = """
import socket, sys, time
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
while True:
    udp.sendto(b"group4", ("239.1.2.3", 5004))
    time.sleep(0.1)
"""
_SHOW = """
(cd /sys/class/net; echo */)  # not bonding_masters, which is a file
for net in 1 2 4 5 6 11 12; do
    echo $net $(busybox ping -c 2 -w 20 10.77.$net.1 | grep -o '[12] packets received')
done
echo flags $(cat /sys/class/net/ipl2/flags /sys/class/net/ipl3/flags)
/bin/receives group4 ipl2 20
"""


def both(lab: Lab, name: str, script: str) -> tuple[list[str], list[str], str]:
    """Run a container in the namespace "box"; returns its output under hawse and under runc, and hawse's warnings."""
    configure(lab)
    program = compiled_file("tests/vm/receives.c")
    lab.see_new_files()
    created = lab.python(_BUNDLE, f"/tmp/bundles/{name}", "/run/netns/box", script, program)
    assert created.code == 0, created
    runc = lab.run(["runc", "run", "--bundle", f"/tmp/bundles/{name}", name], timeout=SECONDS)
    assert runc.code == 0, runc
    ours = hawse(lab, "run", "--bundle", f"/tmp/bundles/{name}", name)
    assert ours.code == 0, ours
    return ours.output.splitlines(), runc.output.splitlines(), ours.errors


@pytest.fixture
def namespaces(lab: Lab) -> Iterator[None]:
    try:
        created = lab.run(["sh", "-c", _NAMESPACES])
        assert created.code == 0, created
        yield
    finally:
        lab.run(["sh", "-c", _CLEAR])


def start_sending(lab: Lab, namespace: str, address: str) -> None:
    words = f"ip netns exec {namespace} " if namespace else ""
    sent = lab.run(["sh", "-c", f'{words}python3 -c "$0" {address} & echo $! >/tmp/sender', _SEND])
    assert sent.code == 0, sent


def stop_sending(lab: Lab) -> None:
    assert lab.run(["sh", "-c", "kill $(cat /tmp/sender)"]).code == 0


@pytest.mark.usefixtures("namespaces")
def test_bonds_vlans_and_ipvlans_behave_as_with_runc(lab: Lab) -> None:
    before = snapshot(lab)
    start_sending(lab, "far", "10.77.11.1")
    try:
        (names, *ours), (all_names, *theirs), errors = both(lab, "kinds", _SHOW)
    finally:
        stop_sending(lab)
    guests, hosts = (set(listed.replace("/", "").split()) for listed in (names, all_names))
    assert guests == {"bond0", "bond0.6", "eth2", "eth2.4", "eth3.5", "ipl2", "ipl3", "lo"}
    assert hosts == guests | {"slave1", "slave2", "eth3", "ipl3s"}
    assert ours == theirs
    assert theirs[:7] == [f"{net} 2 packets received" for net in (1, 2, 4, 5, 6, 11, 12)]
    assert theirs[7:] == ["flags 0x1003 0x1083", "group4 on ipl2: received"], "no ARP in mode l3"
    assert "interface ipl3s is an ipvlan in mode l3s" in errors
    left = lab.run(["sh", "-c", "ip -n box -json link; tc -n box qdisc show | grep -c ingress"]).output.splitlines()
    links = {link["ifname"] for link in json.loads(left[0])}
    assert links == hosts, "no tap is left"
    assert left[1] == "0"
    prove_unchanged(lab, before)


_FUNCTION, _SENDER = VIRTUAL[1], LONE_NIC
#: Moves the VF to a new network namespace, and configures another NIC of the lab at the same hub.
_PLACE = """
set -e
vf=$(ls /sys/bus/pci/devices/$0/net) nic=$(ls /sys/bus/pci/devices/$1/net)
ip netns add box; ip -n box link set lo up
ip link set $vf netns box; ip -n box link set $vf up; ip -n box addr add 10.77.20.2/24 dev $vf
ip link set $nic up; ip addr add 10.77.20.1/24 dev $nic
echo $vf
"""


@pytest.fixture
def function(lab: Lab) -> Iterator[str]:
    """The name of the interface of a VF, in the container's namespace. Afterwards both VFs are on vfio-pci again."""
    try:
        rebind(lab, _FUNCTION, "igbvf")
        rebind(lab, _SENDER, "e1000e")
        placed = lab.run(["sh", "-c", _PLACE, _FUNCTION, _SENDER])
        assert placed.code == 0, placed
        yield placed.output.strip()
    finally:
        lab.run(["sh", "-c", "ip netns del box"])
        for address in (_FUNCTION, _SENDER):
            rebind(lab, address, "vfio-pci")


def test_interface_of_a_virtual_function_receives_as_with_runc(lab: Lab, function: str) -> None:
    """The NIC filters frames for each virtual function, and QEMU emulates this (hw/net/igb_core.c)."""
    script = f"busybox ping -c 2 -w 20 10.77.20.1 | grep -o '[12] packets received'; /bin/receives group4 {function} 20"
    start_sending(lab, "", "10.77.20.1")
    try:
        ours, theirs, errors = both(lab, "function", script)
    finally:
        stop_sending(lab)
    assert (ours, errors) == (theirs, "")
    assert theirs == ["2 packets received", f"group4 on {function}: received"]
