"""Who may make, link, rename and change files in shared directories, and whose they then are: as under runc."""

from __future__ import annotations

import os
import shutil
import struct
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
    "acl": (0, 0, 0o750),
}
#: The program's directories that each server is asked about: a directory takes some seconds without KVM.
EVERY = ["/shared/setgid", "/shared/mapped", "/shared/acl"]


def acl(uid: int) -> bytes:
    """system.posix_acl_access: owner rwx, ``uid`` rwx, group r-x, mask rwx, others nothing (Linux
    include/uapi/linux/posix_acl_xattr.h, posix_acl.h)."""
    nobody = 0xFFFFFFFF
    entries = [(1, 7, nobody), (2, 7, uid), (4, 5, nobody), (16, 7, nobody), (32, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def make_directories(shared: Path) -> None:
    for name, (uid, gid, mode) in DIRECTORIES.items():
        made = shared / name
        made.mkdir(parents=True)
        os.chown(made, uid, gid)
        made.chmod(mode)
    os.setxattr(shared / "acl", "system.posix_acl_access", acl(1000))


def bundle(directory: Path, name: str, arguments: list[str]) -> str:
    made = str(directory / name)
    spec = make_bundle(made, arguments)
    shutil.copy(compiled_file(PROGRAM), f"{made}/rootfs/bin/file_rights")
    make_directories(directory / f"{name}-shared")
    source = str(directory / f"{name}-shared")
    spec["mounts"].append({"destination": "/shared", "type": "bind", "source": source, "options": ["rbind"]})
    spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), RIGHTS)
    spec["process"]["noNewPrivileges"] = False
    write(made, spec)
    return made


@pytest.mark.parametrize("server", ["virtiofsd in C", "virtiofsd in Rust", "9p"])
def test_files_are_made_with_the_rights_and_owners_that_they_have_under_runc(
    runtime: Runtime, tmp_path: Path, server: str
) -> None:
    """By users with supplementary groups, capabilities and ACLs, and by root of a user namespace.

    9p has no ACLs: such a directory is judged by its mode.
    """
    directories = [f"/shared/{name}" for name in DIRECTORIES] if server == "virtiofsd in C" else EVERY
    if server == "9p":
        runtime.configure('[vm]\nshare = "9p"\nconfine = "off"\n')
        directories = [name for name in directories if name != "/shared/acl"]
    elif server == "virtiofsd in Rust":
        runtime.configure(f'[vm]\nvirtiofsd = "{rust_virtiofsd()}"\nshare = "virtiofs"\n')
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
    assert different == []
    made = [line for line in expected.stdout.splitlines() if ": made" in line]
    assert {line.split(" in ")[0] for line in made} >= {"group", "dac_override", "root of a user namespace"}
