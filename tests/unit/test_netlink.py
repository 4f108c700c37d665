"""rtnetlink messages: byte by byte as the kernel's headers define them, and accepted by a kernel."""

from __future__ import annotations

import struct

import pytest

from hawse.linux import netlink


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes at the end of a message."""
    values = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        values[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return values


def parts(message: bytes, body: str) -> tuple[int, int, tuple[int, ...], dict[int, bytes]]:
    """Type, flags, the fixed part and the attributes of a message."""
    length, kind, flags, _, _ = struct.unpack_from("=IHHII", message)
    assert length == len(message)
    end = 16 + struct.calcsize(body)
    return kind, flags, struct.unpack_from(body, message, 16), attributes(message[end:])


def number(value: int) -> bytes:
    return struct.pack("=I", value)


V6 = bytes.fromhex("fd77000000000000" + "0000000000000002")
LINK_LOCAL = bytes.fromhex("fe80000000000000" + "0000000000000001")


@pytest.mark.parametrize(
    ("message", "body", "expected"),
    [
        (netlink.link(1, up=True), "=BxHiII", (16, 5, (0, 0, 1, 1, 1), {})),
        (
            netlink.link(2, name="eth0", mtu=9000), "=BxHiII",
            (16, 5, (0, 0, 2, 0, 0), {3: b"eth0\0", 4: number(9000)}),
        ),
        (
            netlink.address(2, local="10.0.0.2", prefix=24, broadcast="10.0.0.255", label="eth0:1", metric=7), "=BBBBI",
            (20, 0x605, (2, 24, 0, 0, 2), {
                1: bytes([10, 0, 0, 2]), 2: bytes([10, 0, 0, 2]), 3: b"eth0:1\0", 4: bytes([10, 0, 0, 255]),
                8: number(0), 9: number(7),
            }),
        ),
        (
            netlink.address(2, local="10.0.0.2", prefix=32, peer="10.0.0.1", scope=253), "=BBBBI",
            (20, 0x605, (2, 32, 0, 253, 2), {1: bytes([10, 0, 0, 1]), 2: bytes([10, 0, 0, 2]), 8: number(0)}),
        ),
        (
            netlink.address(2, local="fd77::2", prefix=64, flags=0x200), "=BBBBI",
            (20, 0x605, (10, 64, 0, 0, 2), {1: V6, 2: V6, 8: number(0x202)}),
        ),
        (
            netlink.route(2, family=4, to="", prefix=0, gateway="10.0.0.1", metric=5, protocol=3), "=8BI",
            (24, 0x605, (2, 0, 0, 0, 254, 3, 0, 1, 0), {4: number(2), 5: bytes([10, 0, 0, 1]), 6: number(5)}),
        ),
        (
            netlink.route(2, family=4, to="10.9.0.0", prefix=16, scope=253, source="10.0.0.2"), "=8BI",
            (24, 0x605, (2, 16, 0, 0, 254, 0, 253, 1, 0), {
                1: bytes([10, 9, 0, 0]), 4: number(2), 7: bytes([10, 0, 0, 2]),
            }),
        ),
        (
            netlink.route(2, family=6, to="", prefix=0, gateway="fe80::1", flags=4), "=8BI",
            (24, 0x605, (10, 0, 0, 0, 254, 0, 0, 1, 4), {4: number(2), 5: LINK_LOCAL}),
        ),
        (  # IPv4 through an IPv6 gateway: RTA_VIA
            netlink.route(2, family=4, to="", prefix=0, gateway="fe80::1", mtu=1400, mtu_locked=True), "=8BI",
            (24, 0x605, (2, 0, 0, 0, 254, 0, 0, 1, 0), {
                4: number(2), 18: struct.pack("=H", 10) + LINK_LOCAL,
                8: struct.pack("=HHI", 8, 1, 4) + struct.pack("=HHI", 8, 2, 1400),
            }),
        ),
        (
            netlink.neighbour(2, to="10.0.0.1", mac="02:00:00:00:00:0a"), "=BxHiHBB",
            (28, 0x405, (2, 0, 2, 0x80, 0, 0), {1: bytes([10, 0, 0, 1]), 2: bytes([2, 0, 0, 0, 0, 10])}),
        ),
        (netlink.no_ingress(3), "=BxHiIII", (37, 5, (0, 0, 3, 0xFFFF0000, 0xFFFFFFF1, 0), {})),
        (netlink.no_filters(3)[0], "=BxHiIII", (45, 5, (0, 0, 3, 0, 0xFFFFFFF2, 0x48540081), {})),
        (netlink.no_filters(3)[-1], "=BxHiIII", (45, 5, (0, 0, 3, 0, 0xFFFFFFF2, 0x48570300), {})),
        # NOARP instead of MULTICAST; IFF_UP is not for this argument to set.
        (netlink.link(2, flags=0x81), "=BxHiII", (16, 5, (0, 0, 2, 0x80, 0x93A0), {})),
        (netlink.link(2, flags=0), "=BxHiII", (16, 5, (0, 0, 2, 0, 0x93A0), {})),
    ],
)  # fmt: skip
def test_message_has_the_kernels_format(message: bytes, body: str, expected: object) -> None:
    assert parts(message, body) == expected
    assert len(message) % 4 == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"local": "10.0.0.300", "prefix": 24}, "10.0.0.300 is not an IP address"),
        ({"local": "fd77:::2", "prefix": 24}, "fd77:::2 is not an IP address"),
        ({"local": "10.0.0.2", "prefix": 33}, "a prefix of 33 bits for an address of 32 bits"),
        ({"local": "fd77::2", "prefix": -1}, "a prefix of -1 bits for an address of 128 bits"),
        ({"local": "10.0.0.2", "prefix": 24, "peer": "fd77::1"}, "fd77::1 is an address of another family"),
    ],
)
def test_invalid_address_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        netlink.address(2, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (-17, 17)])
def test_error_number_of_an_acknowledgement(code: int, expected: int) -> None:
    answer = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, code) + bytes(16)
    assert netlink.verdict(answer) == netlink.verdict(answer[:20]) == expected
    with pytest.raises(ValueError, match="truncated answer of rtnetlink"):
        netlink.verdict(answer[:19])


@pytest.mark.parametrize("answer", [b"", bytes(19), struct.pack("=IHHIIi", 20, 16, 0, 1, 0, 0)])
def test_answer_that_is_not_an_acknowledgement_is_refused(answer: bytes) -> None:
    with pytest.raises(ValueError, match="answer of rtnetlink"):
        netlink.verdict(answer)


def test_kernel_error_is_raised() -> None:
    with pytest.raises(OSError, match="No such device"):
        netlink.talk([netlink.link(2**31 - 1, up=True)])
