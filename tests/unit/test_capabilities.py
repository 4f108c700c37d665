"""QEMU's capabilities, queried over QMP from programs that replace QEMU; and the two versions of virtiofsd."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import HostError, VmError
from hawse.vm import qemu_features as capabilities
from hawse.vm import virtiofsd
from hawse.vm.qemu_features import Capabilities, ask
from tests.support.scripts import write_program

VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian"}
ANSWERS: list[dict[str, Any]] = [
    {"return": {}},
    {"return": VERSION},
    {"return": [{"name": "edu"}, {"name": "virtio-net-pci"}]},
    {"return": [{"name": "hpet", "type": "bool"}, {"name": "vmport", "type": "str"}]},
    {"return": [{"name": "iommufd"}]},
    {"return": [{"name": "iommufd", "type": "str"}, {"name": "rombar", "type": "uint32"}]},
    {"return": [{"option": "sandbox", "parameters": []}]},
    {"return": {}},
]
REFUSAL = {"error": {"class": "GenericError", "desc": "no such type"}}
QUESTIONS = [
    "qmp_capabilities", "query-version", "qom-list-types", "qom-list-properties", "qom-list-types",
    "device-list-properties", "query-command-line-options", "quit",
]  # fmt: skip


def qemu(directory: Path, answers: list[dict[str, Any]], *, end: str = "") -> str:
    """A program that sends QEMU's greeting, then these answers with an event in between."""
    lines = [{"QMP": {"version": VERSION}}, *answers[:2], {"event": "RESUME"}, *answers[2:]]
    (directory / "answers").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    queries, arguments = f"{directory}/asked", f"{directory}/arguments"
    return write_program(
        f"{directory}/qemu", f'echo "$@" >>{arguments}; cat >>{queries}; cat {directory}/answers; {end}'
    )


def test_capabilities_are_queried_once(tmp_path: Path) -> None:
    program = qemu(tmp_path, ANSWERS)
    capabilities = ask(program, directory=f"{tmp_path}/cache")
    assert capabilities == Capabilities(
        "7.2.22", frozenset({"edu", "virtio-net-pci"}), frozenset({"hpet", "vmport"}), frozenset({"iommufd"}),
        frozenset({"iommufd", "rombar"}), frozenset({"sandbox"}),
    )  # fmt: skip
    assert ask(program, directory=f"{tmp_path}/cache") == capabilities
    queries = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert [question["execute"] for question in queries] == QUESTIONS
    assert "-machine none" in (tmp_path / "arguments").read_text()


def test_replaced_qemu_is_queried_again(tmp_path: Path) -> None:
    ask(qemu(tmp_path, ANSWERS), directory=f"{tmp_path}/cache")
    newer = {"return": {"qemu": {"major": 10, "minor": 0, "micro": 2}}}
    program = qemu(tmp_path, [ANSWERS[0], newer, *ANSWERS[2:]], end="true a longer program")
    assert ask(program, directory=f"{tmp_path}/cache").version == "10.0.2"


def test_qemu_without_q35_or_vfio_has_empty_properties(tmp_path: Path) -> None:
    capabilities = ask(
        qemu(tmp_path, [*ANSWERS[:3], REFUSAL, ANSWERS[4], REFUSAL, REFUSAL, ANSWERS[7]]), directory=f"{tmp_path}/c"
    )
    assert capabilities.machine_properties == capabilities.vfio_properties == capabilities.options == frozenset()
    assert capabilities.objects == {"iommufd"}


@pytest.mark.parametrize(
    "answers", [[], ANSWERS[:3], [ANSWERS[0], REFUSAL, *ANSWERS[2:]], [*ANSWERS[:2], REFUSAL, *ANSWERS[3:]]]
)
def test_qemu_that_exits_is_reported_with_its_stderr(tmp_path: Path, answers: list[dict[str, Any]]) -> None:
    program = qemu(tmp_path, answers, end="echo 'no such library' >&2; exit 1")
    for _ in range(2):
        with pytest.raises(VmError, match="/qemu exits at startup") as caught:
            ask(program, directory=f"{tmp_path}/cache")
        assert caught.value.evidence == "no such library\n"


def test_output_that_is_not_qmp_is_reported(tmp_path: Path) -> None:
    program = write_program(f"{tmp_path}/qemu", "echo '{garbled'")
    with pytest.raises(VmError, match="/qemu exits at startup"):
        ask(program, directory=f"{tmp_path}/cache")


def test_qemu_that_cannot_be_run_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"QEMU cannot be run: /none/qemu: No such file") as caught:
        ask("/none/qemu", directory=str(tmp_path))
    assert "vm.qemu" in caught.value.hint
    (tmp_path / "qemu").write_text("")
    with pytest.raises(HostError, match=r"QEMU cannot be run: \S+/qemu: Permission denied"):
        ask(f"{tmp_path}/qemu", directory=str(tmp_path))


def test_missing_device_model_is_named_in_the_error() -> None:
    can = Capabilities("7.2.0", frozenset({"edu"}), frozenset())
    can.require("edu")
    with pytest.raises(HostError, match=r"QEMU 7\.2\.0 has no device igb"):
        can.require("igb")


@pytest.mark.parametrize(
    ("version", "is_later"),
    [("8.0.9", False), ("8.1.0", True), ("8.2.0", True), ("7.9.9", False), ("9.0.0", True), ("10.0.0", True)],
)
def test_versions_are_compared_as_numbers(version: str, is_later: bool) -> None:
    assert capabilities.Capabilities(version, frozenset(), frozenset()).at_least(8, 1) is is_later


@pytest.mark.parametrize("output", ["echo '--shared-dir <DIR>'", "echo '--shared-dir <DIR>' >&2; exit 1"])
def test_rust_virtiofsd_is_recognized_by_its_help(tmp_path: Path, output: str) -> None:
    program = write_program(f"{tmp_path}/virtiofsd", f'test "$*" = --help && {output}')
    assert virtiofsd.find(program) == program
    assert virtiofsd.arguments(program, fd="7", directory="/share") == [
        program, "--fd=7", "--shared-dir=/share", "--sandbox=namespace", "--cache=auto", "--inode-file-handles=never",
        "--announce-submounts", "--xattr", "--modcaps=-mknod",
    ]  # fmt: skip


def test_c_virtiofsd_keeps_the_limit_of_open_files(tmp_path: Path) -> None:
    """It cannot raise the limit without CAP_SYS_RESOURCE, and exits if an option requires it."""
    program = write_program(f"{tmp_path}/virtiofsd", "echo '-o OPTION'")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert virtiofsd.arguments(program) == [
        program, "--fd={fd}", "-o", "source={directory}", "-o", "sandbox=namespace", "-o", "cache=auto",
        "-o", "announce_submounts", "-o", "xattr", "-o", "modcaps=-mknod", f"--rlimit-nofile={most}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("vector", "filled"),
    [
        (["--fd={fd}", "--shared-dir={directory}"], ["--fd=7", "--shared-dir=/a,b\\c"]),
        (["--fd={fd}", "-o", "source={directory}"], ["--fd=7", "-o", "source=/a\\,b\\\\c"]),
    ],
)
def test_commas_in_a_directory_are_escaped_for_c_virtiofsd(vector: list[str], filled: list[str]) -> None:
    assert virtiofsd.filled(vector, fd=7, directory="/a,b\\c") == filled


def test_virtiofsd_that_cannot_be_run_is_named_in_the_error(tmp_path: Path) -> None:
    for path in ("/none/virtiofsd", f"{tmp_path}/virtiofsd"):
        with pytest.raises(HostError, match=f"{path} cannot be executed") as caught:
            virtiofsd.find(path)
        assert caught.value.hint == "check vm.virtiofsd"
        (tmp_path / "virtiofsd").write_text("")
    os.chmod(tmp_path / "virtiofsd", 0o755)
    assert virtiofsd.find(f"{tmp_path}/virtiofsd") == f"{tmp_path}/virtiofsd"
    with pytest.raises(HostError, match="virtiofsd: /none/virtiofsd cannot be executed: No such file") as caught:
        virtiofsd.is_rust("/none/virtiofsd")
    assert caught.value.hint == 'reinstall it, or set vm.share = "9p"'


def test_virtiofsd_is_found_at_the_paths_of_distributions(tmp_path: Path) -> None:
    second = write_program(f"{tmp_path}/second", "")
    (tmp_path / "first").write_text("not a program")
    assert virtiofsd.find("", candidates=[f"{tmp_path}/none", f"{tmp_path}/first", second]) == second
    assert virtiofsd.find("", candidates=[f"{tmp_path}/none"]) == ""
