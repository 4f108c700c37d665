"""Permissions to create, link, rename and change files in shared directories, and the owners of new files, as under
runc."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.programs import compiled_file
from tests.support.runtime import Runtime
from tests.support.suites import rust_virtiofsd

pytestmark = pytest.mark.vm

PROGRAM = f"{os.path.dirname(__file__)}/file_rights.c"
RIGHTS = [f"CAP_{name}" for name in (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "SYS_ADMIN", "SETFCAP", "SYS_CHROOT",
)]  # fmt: skip
#: Owner, group and mode of each directory.
DIRECTORIES = {
    "setgid": (0, 2000, 0o2775),
    "root": (0, 0, 0o755),
    "mapped": (100005, 100005, 0o700),
    "sticky": (0, 0, 0o1777),
}
#: The directories for tests of the other servers: without KVM, a directory takes some seconds.
FEWER = ("setgid", "mapped")


def make_directories(shared: Path) -> None:
    for name, (uid, gid, mode) in DIRECTORIES.items():
        directory = shared / name
        directory.mkdir(parents=True)
        os.chown(directory, uid, gid)
        directory.chmod(mode)


def bundle(directory: Path, name: str, arguments: list[str]) -> str:
    path = str(directory / name)
    spec = make_bundle(path, arguments)
    shutil.copy(compiled_file(PROGRAM), f"{path}/rootfs/bin/file_rights")
    make_directories(directory / f"{name}-shared")
    source = str(directory / f"{name}-shared")
    spec["mounts"].append({"destination": "/shared", "type": "bind", "source": source, "options": ["rbind"]})
    spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), RIGHTS)
    spec["process"]["noNewPrivileges"] = False
    write(path, spec)
    return path


@pytest.mark.parametrize("server", ["virtiofsd in C", "virtiofsd in Rust", "9p"])
def test_files_have_the_same_permissions_and_owners_as_under_runc(
    runtime: Runtime, tmp_path: Path, server: str
) -> None:
    """Users have supplementary groups and capabilities, or are root of a user namespace."""
    if server == "9p":
        runtime.configure('[vm]\nshare = "9p"\nconfine = "off"\n')
    elif server == "virtiofsd in Rust":
        runtime.configure(f'[vm]\nvirtiofsd = "{rust_virtiofsd()}"\nshare = "virtiofs"\n')
    directories = [f"/shared/{name}" for name in (DIRECTORIES if server == "virtiofsd in C" else FEWER)]
    arguments = ["file_rights", *directories]
    theirs = bundle(tmp_path, "theirs", arguments)
    expected = subprocess.run(
        ["runc", "--root", f"{tmp_path}/runc", "run", "--bundle", theirs, "rights"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (expected.returncode, expected.stderr) == (0, "")
    ran = runtime("run", "--bundle", bundle(tmp_path, "ours", arguments), "ours", seconds=120)
    assert ran.code == 0, ran
    different = [pair for pair in zip(ran.output.splitlines(), expected.stdout.splitlines(), strict=True)
                 if pair[0] != pair[1]]  # fmt: skip
    if server == "9p":
        # QEMU from 7.2 to 9.2.0 creates no special files (docs/mounts.md).
        different = [pair for pair in different if not {"FIFO", "socket"} & set(pair[0].split(": "))]
    assert different == []
    directory = [line for line in expected.stdout.splitlines() if ": made" in line]
    assert {line.split(" in ")[0] for line in directory} >= {"group", "dac_override", "root of a user namespace"}
