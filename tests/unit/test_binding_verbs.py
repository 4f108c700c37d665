"""`hawse bind` and `hawse unbind`: their output and the errors of invalid arguments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.cli.own import bind, unbind
from hawse.cli.parser import Parser
from hawse.cli.settings import Settings
from hawse.errors import DeviceError, UsageError
from hawse.log import Log
from hawse.vfio.bind import records
from hawse.vfio.bind.records import Record
from tests.support.vfio_host import BEFORE, A, B, C, Host


class Shell:
    """Runs the two verbs on a host."""

    def __init__(self, host: Host, capture: pytest.CaptureFixture[str]) -> None:
        self.host = host
        self.capture = capture
        self.settings = Settings(root=f"{host.root}/run/hawse", log=Log(), config_path=None, debug=False)

    def __call__(self, verb: str, *words: str) -> list[str]:
        """The lines that it prints."""
        module = {"bind": bind, "unbind": unbind}[verb]
        parser = Parser(prog=f"hawse {verb}", allow_abbrev=False)
        module.configure(parser)
        status = module.run(
            parser.parse_args(words), self.settings, root=self.host.root, effects=self.host.kernel.effects
        )
        assert status == 0
        return self.output()

    def output(self) -> list[str]:
        return self.capture.readouterr().out.splitlines()


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """A host with functions on their own drivers."""
    return Shell(Host(str(tmp_path)), capsys)


def test_each_function_has_a_line(shell: Shell) -> None:
    assert shell("bind", "3b:00.0", "--group") == [
        f"{A}: e1000e -> vfio-pci, group 12: /dev/vfio/12",
        f"{B}: igb -> vfio-pci, group 12: /dev/vfio/12",
    ]
    assert shell("bind", C, A, A) == [
        f"{C}: e1000e -> vfio-pci, group 13: /dev/vfio/13",
        f"{A}: already bound to vfio-pci, group 12: /dev/vfio/12",
    ]
    assert shell("unbind", C, "3c:00.0") == [f"{C}: vfio-pci -> e1000e, group 13"]
    assert shell("unbind", "--all") == [f"{A}: vfio-pci -> e1000e, group 12", f"{B}: vfio-pci -> igb, group 12"]
    assert shell.host.state() == BEFORE
    assert shell("unbind", "--all") == []


def test_bind_uses_the_named_driver(shell: Shell) -> None:
    shell.host.driver("my-vfio-pci")
    assert shell("bind", C, "--driver", "my_vfio_pci") == [
        f"{C}: e1000e -> my-vfio-pci, group 13: /dev/vfio/13",
    ]


def test_function_without_a_driver_has_none_after_unbind(shell: Shell) -> None:
    os.unlink(f"{shell.host.root}/sys/bus/pci/devices/{C}/driver")
    assert shell("bind", C) == [f"{C}: no driver -> vfio-pci, group 13: /dev/vfio/13"]
    assert shell("unbind", C) == [f"{C}: vfio-pci -> no driver, group 13"]
    assert shell.host.state()[C] == ("", "(null)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "unbind: name addresses, or --all, but not both"),
        ([C, "--all"], "unbind: name addresses, or --all, but not both"),
        (["--all", "--driver", "e1000e"], "--driver goes with addresses, not with --all"),
        ([C, "--driver", "../x"], "'../x' is not the name of a driver"),
        (["x"], "'x' is not the address of a PCI function"),
    ],
)
def test_invalid_arguments_are_refused(shell: Shell, words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        shell("unbind", *words)
    assert caught.value.message == message


def test_function_that_hawse_has_not_bound_needs_a_named_driver(shell: Shell) -> None:
    shell("bind", C)
    records.remove(shell.host.directory, C)
    with pytest.raises(DeviceError, match="hawse has not bound it") as caught:
        shell("unbind", C)
    assert caught.value.hint == f"name the driver: `hawse unbind --driver NAME {C}`"
    assert shell("unbind", C, "--driver", "e1000e") == [f"{C}: vfio-pci -> e1000e, group 13"]
    assert shell.host.state() == BEFORE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0000:77:00.0"], "0000:77:00.0: this host has no such PCI function"),
        ([C], f"{C} is not bound to a VFIO driver, but to e1000e"),
        ([C, "--driver", "igb"], f"{C} is not bound to a VFIO driver, but to e1000e"),
    ],
)
def test_unbind_refuses_functions_without_a_vfio_driver(shell: Shell, words: list[str], message: str) -> None:
    with pytest.raises(DeviceError) as caught:
        shell("unbind", *words)
    assert caught.value.message == message
    assert shell.host.kernel.seen == []


def test_named_driver_replaces_that_of_the_record(shell: Shell) -> None:
    shell("bind", C)
    assert shell("unbind", C, "--driver", "igb") == [f"{C}: vfio-pci -> igb, group 13"]
    assert shell.host.state()[C] == ("igb", "(null)")
    assert shell.host.records() == []


@pytest.mark.parametrize("words", [[C], ["--all"]])
def test_function_of_a_sandbox_is_not_unbound(shell: Shell, words: list[str]) -> None:
    shell.host.take(A, B)
    shell.host.take(C, owner="pod")
    os.makedirs(f"{shell.settings.root}/pod")
    with pytest.raises(DeviceError) as caught:
        shell("unbind", *words)
    assert caught.value.message == f"{C} is bound for the sandbox pod"
    assert caught.value.hint == "`hawse delete pod` restores its driver"
    assert len(shell.output()) == (2 if words == ["--all"] else 0)
    os.rmdir(f"{shell.settings.root}/pod")
    assert shell("unbind", *words) == [f"{C}: vfio-pci -> e1000e, group 13"]


def test_damaged_record_does_not_affect_other_functions(shell: Shell) -> None:
    shell("bind", C)
    shell.host.write(f"run/hawse.bindings/{A}.json", "{")
    with pytest.raises(DeviceError, match=rf"hawse\.bindings/{A}\.json is damaged"):
        shell("unbind", "--all")
    assert shell.output() == [f"{C}: vfio-pci -> e1000e, group 13"]


def test_record_of_a_vanished_function_is_deleted(shell: Shell) -> None:
    records.write(shell.host.directory, Record("0000:77:00.0", "nvme", "", "vfio-pci"))
    assert shell("unbind", "--all") == ["0000:77:00.0: no longer on this host; its record is deleted"]
    assert shell.host.records() == []


def test_function_that_has_its_driver_already_is_reported(shell: Shell) -> None:
    records.write(shell.host.directory, Record(C, "e1000e", "", "vfio-pci"))
    assert shell("unbind", C) == [f"{C}: already bound to e1000e, group 13"]
