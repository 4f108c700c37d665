"""Checks of a network's description in the agent, and the files that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hawse.agent.machine.network import check, set_sysctls
from hawse.errors import VmError


def interface(**other: Any) -> dict[str, Any]:
    description = {"address": "0000:06:00.0", "name": "eth0", "mtu": 1500, "flags": 0x1000, "settings": {}}
    return description | {"addresses": [], "routes": [], "neighbours": []} | other


@pytest.mark.parametrize("name", ["eth0", "net1", "a.b", "ipvl_0", "eth0-15-letters", "eth@1"])
def test_valid_interface_names(name: str) -> None:
    check([interface(name=name)])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"name": ""}, "not a valid name"),
        ({"name": ".."}, "not a valid name"),
        ({"name": "../../etc"}, "not a valid name"),
        ({"name": "eth 0"}, "not a valid name"),
        ({"name": "sixteen-letters!"}, "not a valid name"),
        ({"name": "ééééééééé"}, "not a valid name"),
        ({"flags": 1}, "flags that are not permitted"),  # IFF_UP
        ({"flags": -1}, "flags that are not permitted"),
        ({"flags": "0x1000"}, "flags that are not permitted"),
        ({"routes": [{}] * 1025}, "1025 routes, more than 1024"),
        ({"settings": {"ipv6/../../kernel/core_pattern": "1"}}, "settings that are not permitted"),
        ({"settings": {"ipv6/accept_ra": "|/bin/sh"}}, "settings that are not permitted"),
    ],
)
def test_invalid_interface_name_is_refused(other: dict[str, Any], words: str) -> None:
    with pytest.raises(VmError, match=words):
        check([interface(**other)])


def test_too_many_interfaces_are_refused() -> None:
    with pytest.raises(VmError, match="65 network interfaces"):
        check([interface()] * 65)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.5/arp_notify", "net/ipv4/conf/eth0.5/arp_notify"),
    ],
)
def test_setting_is_written_to_the_same_file_as_by_runc(tmp_path: Path, name: str, path: str) -> None:
    file = tmp_path / "proc" / "sys" / path
    file.parent.mkdir(parents=True)
    file.write_text("0")
    set_sysctls({name: "1"}, root=str(tmp_path))
    assert file.read_text() == "1"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kernel.core_pattern", "'kernel.core_pattern' is not a network setting"),
        ("net/../kernel/core_pattern", "'net/../kernel/core_pattern' is not a network setting"),
        ("network", "'network' is not a network setting"),
        ("net.none", "net.none: the guest cannot set it: No such file or directory"),
    ],
)
def test_setting_outside_of_the_network_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(VmError, match=words):
        set_sysctls({name: "1"}, root=str(tmp_path))


def test_too_many_settings_are_refused() -> None:
    with pytest.raises(VmError, match="257 network settings"):
        set_sysctls({f"net.a{n}": "1" for n in range(257)})


def test_maximum_numbers_are_accepted(tmp_path: Path) -> None:
    entries: dict[str, Any] = {kind: [{}] * 1024 for kind in ("addresses", "routes", "neighbours")}
    settings = {"ipv6/disable_ipv6": "0", "ipv6/accept_ra": "-1", "ipv6/autoconf": "999999999"}
    check([interface(**entries, settings=settings)] * 64)
    (tmp_path / "proc/sys/net").mkdir(parents=True)
    set_sysctls({f"net.a{n}": str(n) for n in range(256)}, root=str(tmp_path))
    assert (tmp_path / "proc/sys/net/a255").read_text() == "255"
