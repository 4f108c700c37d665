"""Layers and options of a mount of type overlay, parsed as by the kernel."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from hawse.errors import ConfigError
from hawse.oci.guest.overlay import Overlay, read
from hawse.oci.guest.specification import plan_guest
from hawse.oci.load import load_bundle
from hawse.planner.shown_files import shown
from tests.support.bundles import specification
from tests.support.ready import Planner

RW = ["upperdir=/u", "workdir=/w"]


def overlay(*lowers: str, upper: str = "/u", work: str = "/w", options: tuple[tuple[str, str], ...] = ()) -> Overlay:
    return Overlay(lowers=lowers, upper=upper, work=work, options=options)


@pytest.mark.parametrize(
    ("options", "layers", "flags"),
    [
        (["lowerdir=/a", *RW], overlay("/a"), []),
        (["lowerdir=/a", *RW, "private", "nosuid"], overlay("/a"), ["private", "nosuid"]),
        (["lowerdir=/a,upperdir=/u", "workdir=/w"], overlay("/a"), []),
        (["lowerdir=/a:/b:/c", *RW], overlay("/a", "/b", "/c"), []),
        (["lowerdir=/a\\:b:/c\\\\d", *RW], overlay("/a:b", "/c\\d"), []),
        # Podman splits its options at each comma, even at an escaped one.
        (["lowerdir=/a\\", "b", *RW], overlay("/a,b"), []),
        (["lowerdir=/a", "upperdir=/u\\,\\:x", "workdir=/w\\", "y"], overlay("/a", upper="/u,:x", work="/w,y"), []),
        (["lowerdir=/a=b c", *RW], overlay("/a=b c"), []),
        (["lowerdir=/x", "lowerdir=/a", *RW], overlay("/a"), []),
        (["lowerdir=/a", *RW, "userxattr", "volatile"], overlay("/a", options=(("userxattr", ""), ("volatile", ""))),
         []),
        (["lowerdir=/a", *RW, "metacopy=on", "index=off"],
         overlay("/a", options=(("metacopy", "on"), ("index", "off"))), []),
        (["lowerdir=/a", *RW, 'context="u:r:t:s0:c1', 'c2"'], overlay("/a", options=(("context", "u:r:t:s0:c1,c2"),)),
         []),
        (["lowerdir=/a:/b"], overlay("/a", "/b", upper="", work=""), []),
        (["lowerdir=/a:/b", "workdir=/w"], overlay("/a", "/b", upper="", work=""), []),
        (["lowerdir=/a", *RW, "ro"], overlay("/u", "/a", upper="", work=""), ["ro"]),
        (["lowerdir=/a\\"], None, []),
    ],
)  # fmt: skip
def test_layers_are_parsed_as_by_the_kernel(options: list[str], layers: Overlay | None, flags: list[str]) -> None:
    if layers is None:
        with pytest.raises(ConfigError, match="without an upper directory"):
            read("mounts[0]", options, readonly=False)
        return
    assert read("mounts[0]", options, readonly="ro" in options) == (layers, flags)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "lowerdir: missing"),
        (RW, "lowerdir: missing"),
        (["lowerdir=", *RW], "'lowerdir=' is not an overlay option"),
        (["lowerdir", *RW], "'lowerdir' is not an overlay option"),
        (["lowerdir=/a"], "needs two directories"),
        (["lowerdir=/a", "upperdir=/u"], "workdir: missing"),
        (["lowerdir=/a::/b", *RW], "a layer is empty or data-only"),
        (["lowerdir=:/a", *RW], "a layer is empty"),
        (["lowerdir=/a:", *RW], "a layer is empty"),
        (["lowerdir=a", *RW], "lowerdir: 'a' is not absolute"),
        (["lowerdir=/a", "upperdir=u", "workdir=/w"], "upperdir: 'u' is not absolute"),
        (["lowerdir=/a", "upperdir=/u", "workdir=./w"], "workdir: './w' is not absolute"),
        (["lowerdir=/proc/1/root", *RW], "lowerdir: /proc/1/root is a file system of the host kernel"),
        (
            ["lowerdir=/a", "upperdir=/x/../sys", "workdir=/w"],
            "upperdir: /x/../sys is a file system of the host kernel",
        ),
        (["lowerdir=/dev", *RW], "lowerdir: /dev is a file system of the host kernel"),
        (["lowerdir=/a", *RW, "lowerdir+=/b"], "not an overlay option that hawse supports"),
        (["lowerdir=/a", *RW, "datadir+=/b"], "not an overlay option"),
        (["lowerdir=/a", *RW, "source=/etc"], "'source=/etc' is not an overlay option"),
        (["lowerdir=/a", *RW, "userxattr=1"], "'userxattr=1' is not an overlay option"),
        (["lowerdir=/a", *RW, "metacopy"], "'metacopy' is not an overlay option"),
        (["lowerdir=/a", *RW, "remount"], "'remount' is not an overlay option"),
        (["lowerdir=/a,b", *RW], "'b' is not an overlay option"),
    ],
)
def test_unsupported_overlay_is_refused_with_its_option(options: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("config.json: mounts[3]", options, readonly=False)
    assert caught.value.message.startswith("config.json: mounts[3].options: ")
    assert words in caught.value.message
    assert caught.value.hint


def test_key_depends_on_all_properties_of_the_overlay() -> None:
    different = [
        overlay("/a"), overlay("/a", "/b"), overlay("/a", upper="/v"), overlay("/a", work="/v"),
        overlay("/a", options=(("volatile", ""),)), overlay("/a:/b"),
    ]  # fmt: skip
    assert len({each.key for each in different}) == len(different)
    assert overlay("/a").key == overlay("/a").key


def test_overlay_is_shared_and_bound_with_the_mounts_flags(tmp_path: Path) -> None:
    spec = specification(["/bin/true"])
    (tmp_path / "rootfs").mkdir()
    options = ["lowerdir=/a", "upperdir=/u", "workdir=/w", "nosuid", "private"]
    spec["mounts"] = [
        {"destination": "/data", "type": "overlay", "source": "overlay", "options": options},
        {"destination": "/ro", "type": "overlay", "options": [*options, "ro"]},
        {"destination": "/bind", "type": "overlay", "source": str(tmp_path), "options": ["bind"]},
    ]
    (tmp_path / "config.json").write_text(json.dumps(spec))
    plan = plan_guest(load_bundle(str(tmp_path)), container="c1")
    assert plan.spec["mounts"][:2] == [
        {"destination": "/data", "type": "bind", "source": "/run/hawse/share/c1/mount0",
         "options": ["bind", "nosuid", "private"]},
        {"destination": "/ro", "type": "bind", "source": "/run/hawse/share/c1/mount1",
         "options": ["bind", "nosuid", "private", "ro"]},
    ]  # fmt: skip
    _, writable, readonly, bind = plan.shares
    assert (writable.overlay, writable.readonly, writable.recursive) == (overlay("/a"), False, False)
    assert (readonly.overlay, readonly.readonly) == (overlay("/u", "/a", upper="", work=""), True)
    assert (bind.overlay, bind.source) == (None, str(tmp_path))


def test_overlay_and_forwarded_socket_have_places_for_programs_of_the_host(tmp_path: Path) -> None:
    """A second mount of an overlay would disturb it: programs of the host find an empty directory."""
    host = Planner(str(tmp_path))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{tmp_path}/socket")
        host.write(
            lambda spec: spec.update(
                mounts=[
                    {"destination": "/data", "type": "overlay", "options": ["lowerdir=/a:/b"]},
                    {"destination": "/s", "type": "bind", "source": f"{tmp_path}/socket"},
                ]
            )
        )
        plan = host.sandbox(host.config(more=f'[share]\nforward_sockets = ["{tmp_path}/s*"]\n'))
    assert shown(plan.container)[1:] == [
        {"destination": "/data", "type": "overlay"},
        {"destination": "/s", "source": f"{tmp_path}/socket", "is_dir": False, "readonly": False},
    ]
    assert [(share.name, share.common) for share in plan.container.shares[:3]] == [
        ("rootfs", False), ("mount0", True), ("mount1", False),
    ]  # fmt: skip
    assert list(plan.container.sockets) == ["mount1"]
