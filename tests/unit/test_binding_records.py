"""The records on disk, valid and damaged, and their locks."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import DeviceError, HostError
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind.records import Record

ADDRESS = "0000:3b:00.0"
RECORD = Record(ADDRESS, "e1000e", "", "vfio-pci", "pod-1")


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "hawse.bindings")


@pytest.mark.parametrize(("root", "place"), [("/run/hawse", "/run/hawse.bindings"), ("/x/", "/x.bindings")])
def test_directory_of_the_records_is_next_to_the_sandboxes(root: str, place: str) -> None:
    assert bindings.directory_of(root) == place


@pytest.mark.parametrize(
    "record",
    [RECORD, Record(ADDRESS, "", "", "vfio-pci"), replace(RECORD, driver="3w-9xxx", override="\udcff né")],
)
def test_record_is_read_as_it_was_written(directory: str, record: Record) -> None:
    assert bindings.read(directory, ADDRESS) is None
    bindings.write(directory, record)
    assert bindings.read(directory, ADDRESS) == record
    assert os.listdir(directory) == [f"{ADDRESS}.json"]
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(f"{directory}/{ADDRESS}.json").st_mode) == 0o600
    bindings.remove(directory, ADDRESS)
    bindings.remove(directory, ADDRESS)
    assert os.listdir(directory) == []


def test_records_are_filtered_by_owner(directory: str) -> None:
    mine, theirs = replace(RECORD, address="0000:01:00.0", owner=""), RECORD
    for record in (theirs, mine):
        bindings.write(directory, record)
    assert bindings.read_all(directory) == ([mine, theirs], [])
    assert bindings.of_owner(directory, "pod-1") == [theirs]
    assert bindings.of_owner(directory, "") == [mine]


def test_missing_directory_has_no_records(directory: str) -> None:
    assert bindings.read_all(directory) == ([], [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is not JSON"), ("[" * 60000, "it is not JSON"), ("[]", "it is not an object of"),
        ("{}", "it is not an object of"), (json.dumps(asdict(RECORD) | {"more": ""}), "it is not an object of"),
        (json.dumps(asdict(RECORD) | {"driver": None}), "driver is not a string"),
        (json.dumps(asdict(RECORD) | {"address": "0000:3b:00.1"}), "address is '0000:3b:00.1'"),
        (json.dumps(asdict(RECORD) | {"driver": "../../x"}), "driver is '../../x'"),
        (json.dumps(asdict(RECORD) | {"vfio": ""}), "vfio is ''"),
        (json.dumps(asdict(RECORD) | {"owner": ".."}), "owner is '..'"),
        (json.dumps(asdict(RECORD) | {"owner": "a/b"}), "owner is 'a/b'"),
        (json.dumps(asdict(RECORD) | {"override": "a\nb"}), "override is 'a"),
        (" " * 70000, "it has more than 65536 bytes"),
    ],
)  # fmt: skip
def test_damaged_record_is_reported_with_its_path(directory: str, text: str, words: str) -> None:
    sound = replace(RECORD, address="0000:3b:00.1")
    bindings.write(directory, sound)
    path = Path(directory, f"{ADDRESS}.json")
    path.write_text(text)
    with pytest.raises(DeviceError) as caught:
        bindings.read(directory, ADDRESS)
    assert caught.value.message.startswith(f"{ADDRESS}: its record {path} is damaged: {words}")
    assert "hawse unbind --driver NAME" in caught.value.hint
    records, damaged = bindings.read_all(directory)
    assert (records, [error.message for error in damaged]) == ([sound], [caught.value.message])


@given(st.binary(max_size=200) | st.dictionaries(st.sampled_from(list(asdict(RECORD))), st.text()).map(json.dumps))
def test_any_content_is_a_record_or_damaged(tmp_path_factory: pytest.TempPathFactory, data: bytes | str) -> None:
    path = tmp_path_factory.getbasetemp() / f"{ADDRESS}.json"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    try:
        record = bindings.read(str(path.parent), ADDRESS)
    except DeviceError as error:
        assert str(path) in error.message
    else:
        assert record is not None
        assert record.address == ADDRESS


def test_other_files_are_ignored(directory: str) -> None:
    bindings.write(directory, RECORD)
    for name in ("README", "x.json", f".{ADDRESS}.77", f"{ADDRESS}.lock"):
        Path(directory, name).write_text("")
    assert bindings.read_all(directory) == ([RECORD], [])


def test_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"its record .*/file/x/.* cannot be written: Not a directory"):
        bindings.write(f"{tmp_path}/file/x", RECORD)
    with (
        pytest.raises(HostError, match="cannot be created: Not a directory"),
        bindings.locked(f"{tmp_path}/file/x", [ADDRESS], seconds=0),
    ):
        pass


def test_lock_excludes_others_and_its_file_is_deleted(directory: str) -> None:
    other = "0000:3b:00.1"
    with bindings.locked(directory, [ADDRESS, other, ADDRESS], seconds=0):
        with (
            pytest.raises(DeviceError, match=r"0000:3b:00\.1: another hawse process has been changing its driver"),
            bindings.locked(directory, ["0000:01:00.0", other], seconds=0),
        ):
            pass
        assert sorted(os.listdir(directory)) == [f"{ADDRESS}.lock", f"{other}.lock"]
    assert os.listdir(directory) == []
    with bindings.locked(directory, [other], seconds=0):
        pass


def test_lock_file_left_by_a_crash_does_not_block(directory: str) -> None:
    os.mkdir(directory)
    Path(directory, f"{ADDRESS}.lock").write_text("")
    with bindings.locked(directory, [ADDRESS], seconds=0):
        pass
    assert os.listdir(directory) == []
