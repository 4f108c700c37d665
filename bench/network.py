"""Network throughput and round-trip time of a container over a veth pair, compared with runc."""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import time

from bench.common import Measured, Seconds, ratio, workbench
from hawse.host import network_namespace
from tests.support.bundles import drop_cgroups, make_bundle, write
from tests.support.netns import Namespace, cable

ROUNDS = 3
_ADDRESS = "10.77.1.1"
_MIB = 1 << 20
#: MiB to send, according to the sender's speed: so the slower first packets are a small part.
_SENT = {"hawse": 256, "runc": 4096}
_SCRIPT = "busybox ping -q -c 200 -i 0.01 {address}; dd if=/dev/zero bs=64k count={count} | busybox nc {address} {port}"


def measure() -> Measured:
    """Run hawse and runc alternately in the same namespace; the server outside receives and counts bytes."""
    rates: dict[str, Seconds] = {"hawse": [], "runc": []}
    trips: dict[str, Seconds] = {"hawse": [], "runc": []}
    with workbench() as (runtime, directory), Namespace() as inside, Namespace() as outside:
        cable(inside, outside, "eth0", net=1)
        for round_ in range(ROUNDS):
            for name in rates:
                bundle = f"{directory}/{name}{round_}"
                with network_namespace.within(
                    outside.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                ) as server:
                    server.bind((_ADDRESS, 0))
                    server.listen()
                    _make(bundle, inside.path, _SENT[name], server.getsockname()[1])
                    words = ["run", "--bundle", bundle, f"bench{round_}"]
                    argv = runtime.argv(*words) if name == "hawse" else ["runc", "--root", f"{directory}/runc", *words]
                    with subprocess.Popen(
                        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                    ) as process:
                        rates[name].append(_receive(server))
                        output = process.communicate()[0]
                match = re.search(r"= [\d.]+/([\d.]+)/", output)
                assert match, output
                trips[name].append(float(match[1]) / 1000)
    figures = {
        "network_throughput_over_runc": ratio(rates["hawse"], rates["runc"]),
        "network_round_trip_over_runc": ratio(trips["hawse"], trips["runc"]),
    }
    notes = ["Over a veth pair, medians:", "", "| | MiB/s | round trip, µs |", "|---|---|---|"]
    for name in rates:
        rate, trip = statistics.median(rates[name]) / _MIB, statistics.median(trips[name]) * 1e6
        notes.append(f"| {name} | {rate:.0f} | {trip:.0f} |")
    return Measured(figures, {"bytes_a_second": rates, "round_trip_s": trips}, notes)


def _make(bundle: str, network: str, mebibytes: int, port: int) -> None:
    script = _SCRIPT.format(address=_ADDRESS, count=mebibytes * 16, port=port)
    rights = {kind: ["CAP_NET_RAW"] for kind in ("bounding", "effective", "permitted")}
    spec = make_bundle(bundle, ["/bin/sh", "-c", script], capabilities=rights)
    spec["linux"]["namespaces"] = [
        {"type": entry["type"]} | ({"path": network} if entry["type"] == "network" else {})
        for entry in spec["linux"]["namespaces"]
        if entry["type"] != "cgroup"
    ]
    # runc 1.1 cannot mount cgroups on every host.
    drop_cgroups(spec)
    write(bundle, spec)


def _receive(server: socket.socket) -> float:
    """Bytes per second of one connection, measured from its first byte."""
    server.settimeout(600)
    connection, _ = server.accept()
    with connection:
        received, began = 0, 0.0
        while piece := connection.recv(_MIB):
            began = began or time.monotonic()
            received += len(piece)
        return received / (time.monotonic() - began)
