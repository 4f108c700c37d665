"""Each mount of a container has a separate device number in the guest, as under runc."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.patience import wait_until
from tests.support.pod_bundles import FOREVER, role
from tests.support.processes import children, descriptors
from tests.support.runtime import Runtime
from tests.support.suites import rust_virtiofsd

pytestmark = pytest.mark.vm

#: Mount points of the container, and mount points below volumes.
POINTS = ("/", "/disk", "/volume", "/volume/inner", "/read-only", "/read-only/inner", "/guest", "/dev", "/proc")
Ask = Callable[[str], str]


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Path]:
    """File systems of the host: volumes with other file systems below them; mounts in one propagate to slaves."""
    root = tmp_path / "volumes"
    with ExitStack() as undo:
        for name, size in (("volume", 7), ("volume/inner", 3), ("disk", 5), ("read-only", 6), ("read-only/inner", 2)):
            place = root / name
            place.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "volume", place], check=True)
            undo.callback(_unmount, place)
            (place / "file").write_text(f"{name}\n")
        subprocess.run(["mount", "--make-shared", root / "volume"], check=True)
        yield root


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", place], check=False)


def bundle(directory: Path, name: str, volumes: Path, annotations: dict[str, str]) -> str:
    new_directory = str(directory / name)
    spec = make_bundle(new_directory, FOREVER)
    for applet in ("df", "find"):
        os.symlink("busybox", f"{new_directory}/rootfs/bin/{applet}")
    (directory / "hosts").write_text("hosts\n")
    binds: list[dict[str, Any]] = [
        {"destination": f"/{name}", "source": str(volumes / name), "type": "bind", "options": options}
        for name, options in (("volume", ["rbind", "rslave"]), ("disk", ["bind"]), ("read-only", ["rbind", "ro"]))
    ]
    binds.append({"destination": "/etc/hosts", "source": str(directory / "hosts"), "type": "bind", "options": ["bind"]})
    binds.append({"destination": "/guest", "source": "tmpfs", "type": "tmpfs", "options": ["size=2m"]})
    spec["mounts"] += binds
    spec["annotations"] = annotations
    write(new_directory, spec)
    return new_directory


#: Commands by their topics. All run in one `exec`, since each needs a second without KVM.
QUESTIONS = {
    "device numbers": f"stat -c %d {' '.join(POINTS)}",
    "sizes in KiB": "for p in /disk /volume /volume/inner /read-only /read-only/inner /guest; do "
    "df -P -k $p | tail -n 1 | while read _ size _ _ _ point; do echo $size $point; done; done",
    "a file": "cat /etc/hosts",
    "find -xdev": "find / -xdev | grep -v -e ^/bin -e ^/sys | sort",
    "find -xdev in a volume": "find /volume /disk -xdev | sort",
    "a file is moved between two mounts": "echo x > /volume/inner/new && mv /volume/inner/new /volume/new && "
    "cat /volume/new && rm /volume/new",
    "ro is of the mount, and not of those below it": "touch /read-only/new 2>&1; echo $?; touch /read-only/inner/new; "
    "echo $?; rm -f /read-only/inner/new",
}
EVERYTHING = "\necho ===\n".join(QUESTIONS.values())
LATER = "ls /volume/later; df -P -k /volume/later | tail -n 1"


def answers(ask: Ask) -> dict[str, str]:
    return dict(zip(QUESTIONS, ask(EVERYTHING).split("===\n"), strict=True))


@pytest.mark.parametrize("program", ["virtiofsd in C", "virtiofsd in Rust"])
def test_mounts_are_separate_file_systems_as_under_runc(
    runtime: Runtime, tmp_path: Path, volumes: Path, program: str
) -> None:
    """Device numbers, df, find -xdev, options, and mounts that the host adds and removes later.

    With the virtiofsd in C also for a container that joins a pod. When it is deleted, the host has no file of it open.
    """
    if program == "virtiofsd in Rust":
        runtime.configure(f'[vm]\nvirtiofsd = "{rust_virtiofsd()}"\nshare = "virtiofs"\n')
    with ExitStack() as undo:
        asks: dict[str, Ask] = {"runc": _under_runc(tmp_path, volumes, undo)}
        for name in ("pod",) if program == "virtiofsd in Rust" else ("pod", "one"):
            runtime.run_detached(bundle(tmp_path, name, volumes, role(name)), name)
            asks[name] = _inside(runtime, name)
        expected = answers(asks["runc"])
        theirs = expected.pop("device numbers").split()
        for name in asks.keys() - {"runc"}:
            output = answers(asks[name])
            ours = output.pop("device numbers").split()
            assert output == expected, name
            for one, other in itertools.combinations(range(len(POINTS)), 2):
                same = theirs[one] == theirs[other]
                assert (ours[one] == ours[other]) is same, (name, POINTS[one], POINTS[other], ours)

        later = volumes / "volume" / "later"
        later.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "later", later], check=True)
        (later / "there").write_text("")
        for name, ask in asks.items():
            assert ask(LATER).split()[:3:2] == ["there", "4096"], name
        # Unmount lazily, since virtiofsd keeps it open, as a process of the container would.
        subprocess.run(["umount", "--lazy", later], check=True)
        for name, ask in asks.items():
            wait_until(partial(_is_empty, ask), what=f"{name}: unmounted")
        later.rmdir()

        if "one" in asks:
            assert any(path.startswith("/one/") for path in _open_files(runtime))
            deleted = runtime("delete", "--force", "one")
            assert (deleted.code, deleted.errors) == (0, "")
            assert [path for path in _open_files(runtime) if path.startswith("/one")] == []
            assert "/volume/inner\n" in asks["pod"]("ls -d /volume/inner; find /volume -xdev"), "its own mounts stay"


def _is_empty(ask: Ask) -> bool:
    return ask("ls /volume/later") == ""


def _inside(runtime: Runtime, name: str) -> Ask:
    def ask(script: str) -> str:
        return runtime("exec", name, "/bin/sh", "-c", script).output

    return ask


def _under_runc(directory: Path, volumes: Path, undo: ExitStack) -> Ask:
    program = ["runc", "--root", f"{directory}/runc"]
    null = subprocess.DEVNULL
    words = [*program, "run", "--detach", "--bundle", bundle(directory, "theirs", volumes, {}), "theirs"]
    undo.callback(subprocess.run, [*program, "delete", "--force", "theirs"], check=False)
    subprocess.run(words, stdin=null, stdout=null, check=True)

    def ask(script: str) -> str:
        words = [*program, "exec", "theirs", "/bin/sh", "-c", script]
        return subprocess.run(words, stdin=null, capture_output=True, text=True, check=False).stdout

    return ask


def _open_files(runtime: Runtime) -> list[str]:
    """The paths in the share that virtiofsd of the sandbox has open."""
    paths: list[str] = []
    with open(f"{runtime.root}/pod/programs") as file:
        pids = [int(line.split()[0]) for line in file]
    for pid in pids:
        for process in (pid, *children(pid)):
            paths += descriptors(process).values()
    return paths
