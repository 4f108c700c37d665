"""Modules outside of the guest image: the kernel can load them by modprobe, and the agent loads the others."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.machine.autoload import Autoload, may_configure_network
from hawse.errors import VmError

DEP = """kernel/net/ipv4/netfilter/ip_tables.ko: kernel/net/netfilter/x_tables.ko
kernel/net/netfilter/x_tables.ko:
kernel/net/bridge/br_netfilter.ko:
"""
NET_ADMIN = {"bounding": ["CAP_CHOWN", "CAP_NET_ADMIN"]}


class Guest:
    """The directories of a guest, and the files of the loaded modules."""

    def __init__(self, directory: Path) -> None:
        self.run, self.root = directory / "run", directory / "root"
        self.modules = directory / "share" / "c1" / "modules"
        for path in (self.run, self.root / "proc/sys/kernel", self.modules):
            path.mkdir(parents=True)
        (self.modules / "modules.dep").write_text(DEP)
        self.loaded: list[str] = []
        self.refused = ""

    def load(self, path: str) -> None:
        if self.refused and path.endswith(self.refused):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        if path in self.loaded:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.loaded.append(path)

    def autoload(self) -> Autoload:
        return Autoload(str(self.modules), run=str(self.run), root=str(self.root), load=self.load)

    @property
    def names(self) -> list[str]:
        return [os.path.basename(path) for path in self.loaded]


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_kernel_starts_a_modprobe_that_finds_the_modules(guest: Guest) -> None:
    guest.autoload()
    assert (guest.root / "proc/sys/kernel/modprobe").read_text() == "/usr/lib/hawse/modprobe"
    assert os.readlink(guest.run / "modules") == str(guest.modules)
    assert guest.names == []


def test_listed_modules_are_loaded_with_their_dependencies(guest: Guest) -> None:
    """A module that is already loaded, or built in, is not an error."""
    loaded = guest.autoload()
    loaded.require(["ip-tables", "ipv6", "x_tables", "br_netfilter"])
    assert guest.names == ["x_tables.ko", "ip_tables.ko", "br_netfilter.ko"]


def test_listed_module_that_cannot_be_loaded_is_an_error(guest: Guest) -> None:
    guest.refused = "x_tables.ko"
    with pytest.raises(VmError) as caught:
        guest.autoload().require(["br_netfilter", "ip_tables"])
    assert caught.value.message == (
        "vm.load_modules: the guest cannot load ip_tables: kernel/net/netfilter/x_tables.ko: Invalid argument"
    )


@pytest.mark.parametrize(
    ("capabilities", "may"),
    [
        (NET_ADMIN, True),
        ({"bounding": ["CAP_NET_RAW"], "inheritable": ["CAP_NET_ADMIN"]}, False),
        ({"bounding": None}, False),
        ({}, False),
        (None, False),
    ],
)
def test_container_that_may_have_firewall_rules(capabilities: Any, may: bool) -> None:
    process = {} if capabilities is None else {"capabilities": capabilities}
    assert may_configure_network({"process": process}) is may


def test_firewall_of_the_legacy_kind_is_loaded_before_a_container_starts(guest: Guest) -> None:
    """It is not an error if the kernel lacks one of the modules."""
    loaded = guest.autoload()
    loaded.begin({"process": {}})
    loaded.wait()
    assert guest.names == []
    for _ in range(2):
        loaded.begin({"process": {"capabilities": NET_ADMIN}})
        loaded.wait()
    assert guest.names == ["x_tables.ko", "ip_tables.ko"]


def test_firewall_that_cannot_be_loaded_is_not_an_error(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    guest.refused = "x_tables.ko"
    loaded = guest.autoload()
    loaded.begin({"process": {"capabilities": NET_ADMIN}})
    loaded.wait()
    assert "module kernel/net/netfilter/x_tables.ko: Invalid argument" in capsys.readouterr().out
