"""Limits of values in specifications and in answers of guests: the last accepted and the first refused value."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.oci.default_spec import example
from hawse.oci.guest.dev_shm import find_tmpfs
from hawse.oci.guest.hugetlbfs import counts_of, page_kib
from hawse.oci.guest.pci_environment import translate
from hawse.oci.guest.specification import plan_guest
from hawse.oci.limits.statistics import convert
from hawse.oci.limits.update import merge
from hawse.oci.load import load_bundle, load_process
from hawse.oci.pods import SANDBOX, SINGLE, role_of
from hawse.oci.process.table import Row, table
from tests.support.bundles import write

MOST = 4 * 1024 * 1024


def refusal(tmp_path: Path, spec: Any) -> str:
    """The error of a refused bundle, without the path of its config.json."""
    (tmp_path / "rootfs").mkdir(exist_ok=True)
    write(str(tmp_path), spec)
    with pytest.raises(ConfigError) as caught:
        load_bundle(str(tmp_path))
    assert caught.value.hint
    return caught.value.message.removeprefix(f"{tmp_path}/config.json: ")


def changed(part: str, **fields: Any) -> dict[str, Any]:
    spec = example()
    spec[part] |= fields
    return spec


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (changed("process", args=[]), "process.args: empty"),
        (changed("process", args=[""]), "process.args: empty"),
        (changed("process", cwd="tmp"), "process.cwd: 'tmp' is not absolute"),
        (changed("process", oomScoreAdj=1001), "process.oomScoreAdj: 1001 is not between -1000 and 1000"),
        (changed("process", oomScoreAdj=-1001), "process.oomScoreAdj: -1001 is not between -1000 and 1000"),
        (example() | {"process": None}, "process: missing"),
        (example() | {"root": None}, "root: missing"),
        ([example()], "not a JSON object"),
        (changed("linux", devices=[{"path": "/dev/x", "type": "x"}]),
         "linux.devices[0].type: 'x' is not c, b, u or p"),
        (changed("process", user={"uid": 2**32}), "process.user.uid: expected int <= 4294967295"),
    ],
)  # fmt: skip
def test_refused_value_is_named(tmp_path: Path, spec: Any, words: str) -> None:
    assert refusal(tmp_path, spec) == words


def test_value_at_the_limit_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    spec = changed("linux", devices=[{"path": f"/dev/{kind}", "type": kind} for kind in "cbup"])
    spec["process"]["user"] = {"uid": 2**32 - 1, "gid": 0}
    del spec["mounts"]
    text = json.dumps(spec)
    (tmp_path / "config.json").write_text(text + " " * (MOST - len(text)))
    assert load_bundle(str(tmp_path)).process.user.uid == 2**32 - 1
    (tmp_path / "config.json").write_text(text + " " * (MOST - len(text) + 1))
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        load_bundle(str(tmp_path))


def test_specification_without_linux_is_checked_as_well(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    spec = example()
    del spec["linux"]
    write(str(tmp_path), spec)
    assert load_bundle(str(tmp_path)).spec.linux is None


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^bundle {tmp_path}/none: no such directory"):
        load_bundle(f"{tmp_path}/none")
    with pytest.raises(ConfigError, match=r"/config\.json: no such file or directory"):
        load_bundle(str(tmp_path))
    write(str(tmp_path), example())
    with pytest.raises(ConfigError, match=f"root.path: {tmp_path}/rootfs is not a directory"):
        load_bundle(str(tmp_path))
    path = tmp_path / "process.json"
    for text, words in ((b'{"args":', "not JSON: Expecting value in line 1, column 9"), (b"\xff\xfe{", "not JSON: ")):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=words):
            load_process(str(path))


@pytest.mark.parametrize("readonly", [True, False])
def test_root_file_system_is_read_only_on_request(tmp_path: Path, readonly: bool) -> None:
    (tmp_path / "rootfs").mkdir()
    write(str(tmp_path), changed("root", readonly=readonly))
    assert plan_guest(load_bundle(str(tmp_path)), container="c1").shares[0].readonly is readonly


@pytest.mark.parametrize(("kind", "hint"), [("network", "--network=host"), ("mount", "add one")])
def test_hint_for_a_missing_namespace_is_an_option_of_the_engine(tmp_path: Path, kind: str, hint: str) -> None:
    (tmp_path / "rootfs").mkdir()
    namespaces = [{"type": name} for name in ("network", "mount") if name != kind]
    write(str(tmp_path), changed("linux", namespaces=namespaces))
    with pytest.raises(ConfigError, match=f"none of type {kind}") as caught:
        plan_guest(load_bundle(str(tmp_path)), container="c1")
    assert hint in caught.value.hint
    assert ("--network" in caught.value.hint) is (kind == "network")


@pytest.mark.parametrize(("size", "role"), [(MOST, SANDBOX), (MOST + 2, SINGLE)])
def test_role_is_read_from_bundles_up_to_a_size(tmp_path: Path, size: int, role: str) -> None:
    text = json.dumps({"annotations": {"io.kubernetes.cri.container-type": "sandbox"}})
    (tmp_path / "config.json").write_text(" " * (size - len(text)) + text)
    assert role_of(str(tmp_path))[0] == role


def test_mountinfo_line_without_optional_fields_is_parsed() -> None:
    """proc(5): the first six fields before the hyphen always exist."""
    assert find_tmpfs("30 22 0:40 / /dev/shm rw - tmpfs shm rw,size=64k\n", "/dev/shm") == 65536
    assert find_tmpfs("30 22 0:40 / /dev/shm - tmpfs shm rw,size=64k\n", "/dev/shm") == 0


@pytest.mark.parametrize(("text", "kib"), [("9999999KB", 9999999), ("1MB", 1024)])
def test_sizes_of_pages(text: str, kib: int) -> None:
    assert page_kib(text) == kib
    with pytest.raises(ValueError, match="10000000"):
        page_kib("10000000KB")


def test_numbers_of_pages() -> None:
    assert counts_of("x", "2MB:9999999") == {2048: 9999999}
    with pytest.raises(ConfigError, match="is not a number of huge pages"):
        counts_of("x", "2MB:10000000")


@pytest.mark.parametrize(
    ("age", "form"), [(0, "%H:%M"), (5 * 3600, "%H:%M"), (86_399, "%H:%M"), (86_400, "%b%d"), (10**12, "%b%d")]
)
def test_process_that_started_a_day_ago_is_listed_with_its_date(age: int, form: str) -> None:
    now = 1_700_000_000.5
    [_, line] = table([Row(0, 1, 0, age, "?", 3, "sh")], now=now)
    assert line.split()[4] == time.strftime(form, time.localtime(max(now - age, 0.5)))


@pytest.mark.parametrize(
    ("update", "current", "words"),
    [
        ({"memory": {"swap": 5}}, {}, "memory.swap 5 is the sum of memory and swap, and memory.limit is not set"),
        ({"memory": {"swap": 5, "limit": 6}}, {}, "memory.swap 5 is the sum of memory and swap, and memory.limit is 6"),
        ({"memory": {"kernel": 7}}, {"memory": {"kernel": 8}}, "memory.kernel cannot be changed"),
        ({"memory": {"kernel": 7}}, {"memory": None}, "memory.kernel cannot be changed"),
    ],
)
def test_limits_that_cannot_be_updated_are_refused(update: dict[str, Any], current: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^update: {words}"):
        merge(update, current)


@pytest.mark.parametrize(
    ("update", "current"),
    [({"memory": {"swap": 5, "limit": 5}}, {}), ({"memory": {"kernel": 7}}, {"memory": {"kernel": 7}})],
)
def test_limits_that_can_be_updated_or_are_unchanged_are_accepted(
    update: dict[str, Any], current: dict[str, Any]
) -> None:
    assert merge(update, current) == {**update, **current}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0), ("100\n", 100), ("18446744073709551615", 2**64 - 1), ("99999999999999999999", 2**64 - 1),
        ("100000000000000000000", 0), ("-1", 0), ("", 0), ("²", 0), ("max", 2**64 - 1),
    ],
)  # fmt: skip
def test_numbers_of_a_guest(text: str, number: int) -> None:
    usage = convert({"memory.current": text, "memory.max": text})["memory"]["usage"]
    assert usage.get("usage", 0) == number
    assert usage["limit"] == (number or 2**64 - 1)


def test_invalid_numbers_of_a_guest_are_ignored() -> None:
    files = {
        "memory.current": "three", "hugetlb.2MB.max": "4", "xB.current": "5", "hugetlb.1GB.current": "6",
        "memory.stat": "anon 7\nfile\nlong line 8\nno-name 9\n",
    }  # fmt: skip
    statistics = convert(files)
    assert statistics["memory"]["raw"] == {"anon": 7}
    assert "usage" not in statistics["memory"]["usage"]
    assert statistics["hugetlb"] == {"1GB": {"usage": 6, "failcnt": 0}}


def test_address_in_a_list_is_translated() -> None:
    entry = 'PCIDEVICE_X_INFO={"0000:3b:00.0":{"peers":["0000:3b:00.0","none"]}}'
    assert translate([entry], {"0000:3b:00.0": "0000:06:00.0"}) == [entry.replace("3b", "06")]
