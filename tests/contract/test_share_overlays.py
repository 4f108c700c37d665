"""Overlays in a share: mounted once for all containers, and unmounted with the last."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.host.mounts import open_sources
from hawse.linux import mounts as linux
from hawse.monitor.share.share_root import ShareRoot
from hawse.oci.guest.overlay import Overlay
from hawse.oci.guest.share import Share
from tests.support.shares import in_namespace, mount_shares, mounts_below, places_of


def layers(tmp_path: Path) -> Overlay:
    """An overlay of directories whose names must be escaped in mount options."""
    lower, upper, work = (tmp_path / f"{name},:\\" for name in ("lower", "upper", "work"))
    other = tmp_path / "other"
    for directory in (lower, other, upper, work):
        directory.mkdir()
    (other / "deep").write_text("")
    (lower / "file").write_text("below")
    (lower / "removed").write_text("")
    return Overlay(lowers=(str(lower), str(other)), upper=str(upper), work=str(work))


def over(name: str, overlay: Overlay, *, readonly: bool = False) -> Share:
    return Share(
        name=name, source=overlay.name, is_dir=True, readonly=readonly, private=True, recursive=False, common=True,
        overlay=overlay,
    )  # fmt: skip


def on_disk(act: Callable[[str], Any]) -> Any:
    """Call ``act`` with a directory that can be an upper layer: the host's root may be an overlay, which cannot be
    one."""

    def mount_and_act() -> Any:
        linux.mount("test", "/mnt", "tmpfs", 0)
        return act("/mnt")

    return in_namespace(mount_and_act)


def test_overlay_is_mounted_once_and_unmounted_with_its_last_container() -> None:
    """Written files are in the upper directory on the host. The overlay is not mounted on the host."""

    def act(directory: str) -> Any:
        overlay = layers(Path(directory))
        root = ShareRoot(f"{directory}/share")
        mount_shares(root, "c1", [over("mount1", overlay), over("mount2", overlay)])
        sources = open_sources.open_sources([over("mount5", overlay)], root.overlays)
        root.place("c2", [over("mount5", overlay)], sources)
        open_sources.close(sources)
        places = [places_of(root, name) for name in ("c1", "c2")]
        place = f"{root.directory}/@/1"
        Path(place, "file").write_text("above")
        os.unlink(f"{place}/removed")
        seen = sorted(os.listdir(place))
        root.remove("c1")
        Path(place, "later").write_text("")
        kept = root.overlays == [overlay.key], list(mounts_below(place))
        root.remove("c2")
        upper = Path(overlay.upper)
        removed = stat.S_ISCHR((upper / "removed").lstat().st_mode)
        # The layers are no longer in use.
        os.close(open_sources.open_sources([over("mount1", overlay)])[0].tree)
        lower = Path(overlay.lowers[0], "file").read_text()
        return places, seen, kept, root.overlays, sorted(os.listdir(upper)), removed, lower

    places, seen, kept, left, upper, removed, lower = on_disk(act)
    assert places == [{"mount1": ["@/1", 0], "mount2": ["@/1", 0]}, {"mount5": ["@/1", 0]}]
    assert seen == ["deep", "file"]
    assert (kept, left, upper, removed, lower) == ([True, [""]], [], ["file", "later", "removed"], True, "below")


def test_overlay_whose_last_container_was_deleted_meanwhile_is_refused() -> None:
    def act(directory: str) -> Any:
        overlay = layers(Path(directory))
        root = ShareRoot(f"{directory}/share")
        with pytest.raises(ConfigError, match="the container with this overlay was deleted"):
            root.place(
                "c2", [over("mount5", overlay)], open_sources.open_sources([over("mount5", overlay)], [overlay.key])
            )
        return True

    assert on_disk(act)


def test_read_only_overlay_shows_its_layers_and_refuses_writes() -> None:
    def act(directory: str) -> Any:
        overlay = layers(Path(directory))
        root = ShareRoot(f"{directory}/share")
        mount_shares(root, "c1", [over("mount1", Overlay(lowers=(overlay.upper, *overlay.lowers)), readonly=True)])
        options, _ = mounts_below(root.directory)["/@/1"]
        with pytest.raises(OSError, match="Read-only"):
            Path(root.directory, "@/1/new").write_text("")
        return sorted(os.listdir(f"{root.directory}/@/1")), "ro" in options

    assert on_disk(act) == [["deep", "file", "removed"], True]


def test_error_names_the_invalid_layer_of_an_overlay() -> None:
    """A layer is missing, is a file or is a kernel file system, or there are too many layers."""

    def act(directory: str) -> Any:
        good = layers(Path(directory))
        Path(directory, "proc").mkdir()
        linux.mount("proc", f"{directory}/proc", "proc", 0)
        Path(directory, "file").touch()
        cases: list[tuple[dict[str, Any], str]] = [
            ({"lowers": (f"{directory}/none",)}, "none: no such file"),
            ({"upper": f"{directory}/file"}, "file: not a directory"),
            ({"work": f"{directory}/none"}, "none: no such file"),
            ({"lowers": (f"{directory}/proc",)}, "kernel, proc"),
            ({"lowers": (directory,) * 200}, "200 lower directories exceed the kernel's limit"),
            ({"options": (("index", "never"),)}, "cannot mount the overlay on "),
            ({"work": f"{directory}/upper,:\\"}, "cannot mount the overlay on "),
        ]
        before = len(os.listdir("/proc/self/fd"))
        for changes, words in cases:
            overlay = Overlay(**{"lowers": good.lowers, "upper": good.upper, "work": good.work, **changes})
            with pytest.raises(ConfigError) as caught:
                open_sources.open_sources([over("mount1", overlay)])
            assert words in caught.value.message, (changes, caught.value.message)
        return len(os.listdir("/proc/self/fd")) - before, os.getcwd() != "/proc/self/fd"

    assert on_disk(act) == [0, True]
