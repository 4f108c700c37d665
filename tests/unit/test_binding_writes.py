"""The child that writes, tested with plain files. A FIFO without a reader simulates a write that hangs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hawse.errors import DeviceError
from hawse.vfio.bind import records
from hawse.vfio.bind.bind import bind
from hawse.vfio.bind.driver_moves import Effects
from hawse.vfio.bind.sysfs_writes import Outcome, Write, carry_out, load_module
from tests.support.vfio_host import C, Host


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Three files with one line each."""
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_text("a longer line\n")
    return paths


def texts(files: list[str]) -> list[str]:
    return [Path(path).read_text() for path in files]


def as_before(host: Host) -> bool:
    """Whether the override was cleared: a plain file then contains the empty line that was written."""
    return (host.state()[C][0], host.read(C, "driver_override")) == ("e1000e", "\n")


def plan(files: list[str]) -> list[Write]:
    return [Write(path, f"{number}\n") for number, path in enumerate(files)]


def test_all_texts_are_written_to_their_files(files: list[str]) -> None:
    assert carry_out(plan(files), 20) == Outcome(3)
    assert texts(files) == ["0\n", "1\n", "2\n"]


def test_failing_write_is_the_last_one(files: list[str]) -> None:
    os.unlink(files[1])
    assert carry_out(plan(files), 20) == Outcome(1, errno=errno.ENOENT)
    assert not os.path.exists(files[1])
    assert Path(files[2]).read_text() == "a longer line\n"


def test_hanging_write_is_abandoned_at_the_deadline(files: list[str]) -> None:
    os.unlink(files[0])
    os.mkfifo(files[0])
    assert carry_out(plan(files), 0.3) == Outcome(0, hangs=True)
    # The child has ended: an immediate end of file proves that the FIFO has no writer.
    reader = os.open(files[0], os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert [Path(path).read_text() for path in files[1:]] == ["a longer line\n"] * 2


def test_text_that_is_not_utf_8_is_written(files: list[str]) -> None:
    assert carry_out([Write(files[0], os.fsdecode(b"\xff\xc3\xa9\n"))], 20) == Outcome(1)
    assert Path(files[0]).read_bytes() == b"\xff\xc3\xa9\n"


def test_missing_module_is_a_failure_with_a_reason() -> None:
    assert load_module("hawse_has_no_such_module", 20)


def test_hanging_bind_names_the_device_and_the_write(tmp_path: Path) -> None:
    """The real child, on a fake host whose kernel does not react."""
    host = Host(str(tmp_path))
    os.mkfifo(tmp_path / "sys/bus/pci/drivers/e1000e/unbind")
    effects = Effects(load=host.kernel.load, holders=lambda _group: [])
    with pytest.raises(DeviceError) as caught:
        bind([C], directory=host.directory, root=host.root, seconds=2, effects=effects)
    path = f"{host.root}/sys/bus/pci/drivers/e1000e/unbind"
    assert caught.value.message.startswith(f"{C}: writing '{C}' to {path} has not returned after 2 s")
    assert "programs that have the device open" in caught.value.hint
    assert (as_before(host), records.read_all(host.directory)) == (True, ([], []))


def test_kernel_that_does_not_change_the_driver_is_detected(tmp_path: Path) -> None:
    host = Host(str(tmp_path))
    for name in ("drivers/e1000e/unbind", "drivers_probe"):
        host.write(f"sys/bus/pci/{name}", "")
    effects = Effects(load=host.kernel.load, holders=lambda _group: [])
    with pytest.raises(DeviceError, match=r"0000:3c:00\.0: vfio-pci did not bind to it: its driver is now e1000e"):
        bind([C], directory=host.directory, root=host.root, seconds=20, effects=effects)
    assert Path(host.root, "sys/bus/pci/drivers_probe").read_text() == f"{C}\n"
    assert as_before(host)


def test_sysfs_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    host = Host(str(tmp_path))
    effects = Effects(load=host.kernel.load, holders=lambda _group: [])
    with pytest.raises(DeviceError, match=r"e1000e/unbind failed: No such file or directory") as caught:
        bind([C], directory=host.directory, root=host.root, seconds=20, effects=effects)
    assert "requires root" in caught.value.hint
    assert as_before(host)
