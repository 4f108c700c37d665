"""`hawse devices`: the host's functions by group, for people and as JSON."""

from __future__ import annotations

import argparse
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from hawse.cli.own import devices
from hawse.cli.settings import Settings
from hawse.log import Log
from hawse.vfio.bind import records
from tests.support.sysfs import FakeSysfs

#: BARs as sysfs has them: start, end, flags (Linux include/linux/ioport.h).
MEMORY_32 = "0x00000000fe000000 0x00000000fe01ffff 0x0000000000040200"
PORTS = "0x000000000000c000 0x000000000000c01f 0x0000000000040101"
MEMORY_64 = "0x0000000400000000 0x00000007ffffffff 0x000000000014220c"
SMALL = "0x00000000fe100000 0x00000000fe1001ff 0x0000000000140204"
NOTHING = "0x0000000000000000 0x0000000000000000 0x0000000000000000"


class Listing:
    """`hawse devices` of a host below a directory, with state below another."""

    def __init__(self, directory: Path) -> None:
        self.host = FakeSysfs(str(directory))
        self.host.write("usr/share/misc/pci.ids", "8086  Intel\n")
        self.state = directory / "state"
        self.config = ""
        self.warnings = ""

    def text(self, *, as_json: bool = False) -> str:
        """The output of the verb."""
        config = self.state.parent / "config.toml"
        config.write_text(self.config)
        settings = Settings(root=str(self.state), log=Log(), config_path=str(config), debug=False)
        with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
            assert devices.run(argparse.Namespace(json=as_json), settings, root=self.host.root) == 0
        self.warnings = errors.getvalue()
        return output.getvalue()

    def json(self) -> list[Any]:
        """The output as JSON."""
        groups: list[Any] = json.loads(self.text(as_json=True))
        return groups

    def attribute(self, address: str, name: str, text: str) -> None:
        """Write an attribute of a function."""
        self.host.write(f"sys/bus/pci/devices/{address}/{name}", text)

    def monitor(self, name: str, content: str) -> None:
        """Write the state file of a container."""
        (self.state / name).mkdir(parents=True)
        (self.state / name / "state.json").write_text(content)


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    return Listing(tmp_path)


def test_function_that_can_be_passed(listing: Listing) -> None:
    resource = "\n".join([MEMORY_32, PORTS, NOTHING, MEMORY_64, NOTHING, SMALL])
    listing.host.function("0000:3b:00.0", group=7, resource=resource)
    listing.host.node(7, 511, 0)
    listing.attribute("0000:3b:00.0", "numa_node", "0\n")
    listing.attribute("0000:3b:00.0", "reset_method", "flr bus\n")
    listing.attribute("0000:3b:00.0", "sriov_totalvfs", "8\n")
    listing.attribute("0000:3b:00.0", "sriov_numvfs", "2\n")
    assert listing.text().splitlines() == [
        "group 7  /dev/vfio/7  can be passed",
        "  0000:3b:00.0  8086:10d3",
        "      vfio-pci, NUMA node 0, BAR 0 128 KiB 32-bit, BAR 1 32 B I/O, BAR 3 16 GiB 64-bit prefetchable, "
        "BAR 5 512 B 64-bit, reset: flr, bus, 2 of 8 virtual functions",
    ]
    [group] = listing.json()
    assert (group["group"], group["node"], group["can_be_passed"], group["reason"]) == (7, "/dev/vfio/7", True, "")
    [function] = group["functions"]
    assert (function["id"], function["class"], function["numa_node"]) == ("8086:10d3", "020000", 0)
    assert function["bars"][1] == {"index": 1, "size": 32, "kind": "I/O"}
    assert (function["reset_methods"], function["virtual_functions"]) == (["flr", "bus"], [2, 8])


def test_function_that_cannot_be_passed(listing: Listing) -> None:
    listing.host.function("0000:00:1f.0", group=9, driver="")
    listing.attribute("0000:00:1f.0", "reset_method", "")
    listing.attribute("0000:00:1f.0", "numa_node", "-1\n")
    lines = listing.text().splitlines()
    assert lines[0] == "group 9"
    assert lines[2] == "      no driver, reset: none (!)"
    assert lines[3].startswith("  cannot be passed: ")
    assert lines[3].endswith("]")
    [group] = listing.json()
    assert (group["node"], group["can_be_passed"], bool(group["remedy"])) == (None, False, True)
    assert group["functions"][0]["virtual_functions"] is None


@pytest.mark.parametrize(
    ("methods", "words"), [("bus", "reset: bus (!)"), ("bus cxl_bus", "(!)"), ("pm bus", "reset: pm, bus")]
)
def test_reset_of_a_whole_bus_is_marked(listing: Listing, methods: str, words: str) -> None:
    listing.host.function("0000:3b:00.0", group=7)
    listing.attribute("0000:3b:00.0", "reset_method", methods)
    text = listing.text()
    assert words in text
    assert ("(!)" in text) is ("(!)" in words)


def test_virtual_function_names_its_physical_one(listing: Listing) -> None:
    listing.host.function("0000:3b:00.0", group=7)
    listing.host.function("0000:3b:10.0", group=8)
    listing.host.link("sys/bus/pci/devices/0000:3b:10.0/physfn", "../0000:3b:00.0")
    assert "virtual function of 0000:3b:00.0" in listing.text()


def test_group_in_use_names_its_sandbox(listing: Listing) -> None:
    """The user is QEMU, whose parent is the monitor. State files without a monitor's pid are ignored."""
    listing.host.function("0000:3b:00.0", group=7)
    listing.host.node(7, 511, 0)
    listing.host.link("proc/4242/fd/9", f"{listing.host.root}/dev/vfio/7")
    listing.host.write("proc/4242/comm", "qemu-system-x86\n")
    listing.host.write("proc/4242/stat", "4242 (qemu-system-x86) S 4200 1 1\n")
    for name, content in (("c0", "no JSON"), ("c2", "[]"), ("c3", '{"monitorPid": null}'), ("c4", "{}")):
        listing.monitor(name, content)
    (listing.state / "not an id").mkdir()
    assert listing.json()[0]["users"] == [{"pid": 4242, "name": "qemu-system-x86", "sandbox": ""}]
    assert "sandbox" not in listing.text()
    listing.monitor("c1", '{"monitorPid": 4200}')
    assert listing.json()[0]["users"][0]["sandbox"] == "c1"
    assert listing.text().splitlines()[-1] == "  used by the sandbox c1"


def test_host_without_functions(listing: Listing) -> None:
    assert listing.json() == []
    assert listing.text() == "no PCI functions and no emulated groups\n"


def test_emulated_groups_are_listed_and_marked(listing: Listing) -> None:
    listing.host.function("0000:3b:00.0", group=7)
    listing.host.node(7, 511, 0)
    listing.config = '[emulated]\n12 = ["edu", "e1000e"]\n5 = ["nvme"]\n'
    lines = listing.text().splitlines()
    assert lines[0] == "group 7  /dev/vfio/7  can be passed"
    assert lines[-2:] == [
        "group 5  emulated by QEMU: nvme; name it /dev/vfio/5",
        "group 12  emulated by QEMU: edu, e1000e; name it /dev/vfio/12",
    ]
    groups = listing.json()
    assert [(group["group"], group["emulated"], group["can_be_passed"]) for group in groups] == [
        (7, False, True), (5, True, True), (12, True, True),
    ]  # fmt: skip
    assert [function["name"] for function in groups[2]["functions"]] == ["edu", "e1000e"]
    assert groups[2]["functions"][0]["address"] is None
    for key in ("functions", None):
        host, emulated = ((group[key][0] if key else group) for group in groups[:2])
        assert list(host) == list(emulated), "a program finds the same keys in both"


def test_host_group_with_the_number_of_an_emulated_group_is_refused(listing: Listing) -> None:
    """A container's node /dev/vfio/7 means the emulated group."""
    listing.host.function("0000:3b:00.0", group=7)
    listing.host.node(7, 511, 0)
    listing.config = '[emulated]\n7 = ["edu"]\n'
    host, emulated = listing.json()
    assert (host["can_be_passed"], emulated["can_be_passed"]) == (False, True)
    assert "cannot be passed: the configuration declares an emulated group 7 [choose another number" in listing.text()


def test_missing_names_of_devices_are_mentioned_once(listing: Listing) -> None:
    for number in range(3):
        listing.host.function(f"0000:3b:00.{number}", group=7)
    assert "pci.ids" not in listing.text()
    (listing.state.parent / "usr/share/misc/pci.ids").unlink()
    lines = listing.text().splitlines()
    sentence = "the names of devices are unknown: install the package pci.ids (Debian) or hwdata"
    assert [line for line in lines if "pci.ids" in line] == [lines[-1]] == [sentence]
    assert listing.json()[0]["functions"][0]["name"] == "8086:10d3"


@pytest.mark.parametrize(
    ("driver", "others", "reason"),
    [
        ("igb", (), "0000:3b:00.0 is bound to igb; it must be bound to vfio-pci"),
        ("igb", ("igb",), "group 7 is not viable: 0000:3b:00.0 is bound to igb"),
        ("vfio-pci", (), "/dev/vfio/7 cannot be opened: No such file or directory"),
    ],
)
def test_reason_is_not_repeated(listing: Listing, driver: str, others: tuple[str, ...], reason: str) -> None:
    for number, name in enumerate((driver, *others)):
        listing.host.function(f"0000:3b:00.{number}", group=7, driver=name)
    [line] = [line for line in listing.text().splitlines() if "cannot be passed" in line]
    assert line.replace(listing.host.root, "").startswith(f"  cannot be passed: {reason}")
    assert line.count("cannot be passed") == 1
    assert listing.json()[0]["reason"].startswith("group 7 "), "JSON has the sentence that `hawse create` prints"


@pytest.mark.parametrize(
    ("owner", "remedy"),
    [
        ("", "`hawse unbind 0000:77:00.0`"), ("c1", "`hawse delete c1`"), ("gonebox", "`hawse unbind 0000:77:00.0`"),
    ],
)  # fmt: skip
def test_record_of_a_function_that_has_vanished_is_a_warning(listing: Listing, owner: str, remedy: str) -> None:
    directory = records.directory_of(str(listing.state))
    (listing.state / "c1").mkdir(parents=True)
    listing.host.function("0000:3b:00.0", group=7)
    for address in ("0000:3b:00.0", "0000:77:00.0"):
        records.write(directory, records.Record(address, "igb", "", "vfio-pci", owner))
    assert len(listing.json()) == 1
    assert listing.warnings == (
        "hawse: warning: 0000:77:00.0 is on record as bound to vfio-pci, but no longer on this host "
        f"[{remedy} deletes the record]\n"
    )
