"""Lines of QEMU's stderr become warnings, and reasons for the end of the VM."""

from __future__ import annotations

import pytest

from hawse.errors import VmError
from hawse.monitor.machine.qemu_warnings import MOST, QemuWarnings


def read(*pieces: bytes) -> tuple[list[str], list[VmError], str]:
    """The warnings, the errors and the reason of an abort or a stop after these pieces."""
    warnings: list[str] = []
    errors: list[VmError] = []
    complaints = QemuWarnings(warnings.append, errors.append, address_bits=39)
    for piece in pieces:
        complaints.feed(piece)
    return warnings, errors, complaints.reason


@pytest.mark.parametrize(
    ("pieces", "warnings"),
    [
        ([b"qemu-system-x86_64: warning: one\n"], ["QEMU: warning: one"]),
        ([b"2026-11-28T10:00:00.1Z /usr/bin/qemu-system-x86_64: two\n"], ["QEMU: two"]),
        ([b"a line in", b" two pieces\nand a half"], ["QEMU: a line in two pieces"]),
        ([b"one\ntwo\n\n  \nthree\n"], ["QEMU: one", "QEMU: two", "QEMU: three"]),
        ([b"\x1b[31mred\x07\n", b"\xff\xfe\n"], ["QEMU: ?[31mred?", "QEMU: \ufffd\ufffd"]),
        ([b""], []),
    ],
)
def test_each_line_is_a_warning(pieces: list[bytes], warnings: list[str]) -> None:
    assert read(*pieces) == (warnings, [], "")


def test_flood_of_lines_is_cut_off() -> None:
    """A guest can cause messages of some device models at will; the engine's log must not grow with them."""
    warnings, _, _ = read(b"".join(b"line %d\n" % number for number in range(10_000)))
    assert len(warnings) == MOST
    assert warnings[-1] == f"QEMU: line {MOST - 1} (further messages are in qemu.log only)"


def test_line_without_an_end_is_bounded() -> None:
    warnings, _, _ = read(*[b"x" * 65536] * 100, b"\n")
    assert [len(warning) for warning in warnings] == [1006]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vfio_dma_map(0x55, 0xffff0000, 0x1000, 0x7f) = -28 (No space left on device)", "too many mappings"),
        ("vfio_container_dma_map(0x55, 0x1, 0x1000, 0x7f) = -28 (No space left on device)", "dma_entry_limit"),
        ("vfio_container_dma_map(0x55, 0x1, 0x1000, 0x7f) = -12 (Cannot allocate memory)", "LimitMEMLOCK"),
        (
            "vfio_dma_map(0x55, 0x7fffff000, 0x1000, 0x7f) = -22 (Invalid argument)",
            "not translate the IOVA 0x7fffff000",
        ),
    ],
)
def test_mapping_that_the_host_refuses_ends_the_vm(line: str, words: str) -> None:
    """The guest believes in the mapping, and would lose DMA without any error."""
    warnings, [error], _ = read(f"qemu-system-x86_64: {line}\n".encode())
    assert warnings == [f"QEMU: {line}"]
    assert "DMA of the device would have been lost" in error.message
    assert words in error.sentence()


@pytest.mark.parametrize(
    "line",
    [
        "vfio_dma_map(0x55, 0x8000000000, 0x1000, 0x7f) = -22 (Invalid argument)",
        "vfio_dma_map(0x55, 0x11112222333344445, 0x1000, 0x7f) = -22 (Invalid argument)",
        "vfio_dma_map(0x55, 0xfe000000, 0x1000, 0x7f) = -14 (Bad address)",
        "vfio_dma_unmap(0x55, 0x1, 0x1000) = -12 (Cannot allocate memory)",
    ],
)
def test_mapping_between_devices_that_the_host_refuses_is_only_a_warning(line: str) -> None:
    """Peer-to-peer mappings of BARs fail on many hosts, and no program of a container asks for them."""
    assert read(f"{line}\n".encode()) == ([f"QEMU: {line}"], [], "")


def test_reason_of_an_abort_comes_before_the_registers() -> None:
    text = b"qemu: hardware error: igb: invalid descriptor\nCPU #0:\n" + b"RAX=0 RBX=0\n" * 100
    warnings, errors, reason = read(text)
    assert reason == "hardware error: igb: invalid descriptor"
    assert warnings == ["QEMU: qemu: hardware error: igb: invalid descriptor"]
    assert errors == []


@pytest.mark.parametrize(
    ("text", "message", "words"),
    [
        (
            "qemu-system-x86_64: vfio_err_notifier_handler(0000:3b:00.0) Unrecoverable error detected. Please collect "
            "any data possible and then kill the guest\n",
            "QEMU stopped the virtual machine: 0000:3b:00.0, or a port above it, reported an uncorrectable error",
            "PCI Express error",
        ),
        (
            "KVM internal error. Suberror: 1\nextra data[0]: 0x1\nemulation failure\nRAX=0\n",
            "the host's KVM cannot continue the virtual machine: KVM internal error. Suberror: 1",
            "nested virtualization",
        ),
        (
            "KVM: entry failed, hardware error 0x80000021\n",
            "the host's KVM cannot continue the virtual machine: KVM: entry failed, hardware error 0x80000021",
            "nested virtualization",
        ),
        (
            "error: kvm run failed Bad address\n",
            "the host's KVM cannot continue the virtual machine: error: kvm run failed Bad address",
            "nested virtualization",
        ),
        ("KVM is fine\n", "QEMU stopped the virtual machine: internal-error", "qemu.log"),
        ("vfio_err_notifier_handler(../../x) Unrecoverable\n", "QEMU stopped the virtual machine: internal-error", ""),
    ],
)
def test_error_of_a_stopped_vm_has_the_reason(text: str, message: str, words: str) -> None:
    complaints = QemuWarnings(lambda _line: None, lambda _error: None)
    complaints.feed(text.encode())
    error = complaints.stop_error("internal-error")
    assert error.message == message
    assert words in error.hint


def test_lost_dma_is_noticed_after_an_error_of_kvm() -> None:
    """KVM may continue the guest, if the error was in a program of it."""
    mapping = b"qemu: vfio_container_dma_map(0x55, 0x1000, 0x1000, 0x7f) = -12 (Cannot allocate memory)\n"
    _, [error], _ = read(b"KVM internal error. Suberror: 1\nRAX=0\n", mapping)
    assert "DMA of the device would have been lost" in error.message


def test_registers_after_an_error_of_kvm_are_no_warnings() -> None:
    text = b"KVM internal error. Suberror: 1\nemulation failure\n" + b"RAX=0 RBX=0\n" * 100
    assert read(text)[0] == ["QEMU: KVM internal error. Suberror: 1"]
