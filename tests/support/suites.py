"""Programs of other Debian releases, run without installation: a newer QEMU, the Rust virtiofsd.

They are fetched from the host's mirror and run with their own loader and libraries from a directory.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence

from hawse.vm.image import packages
from tests.support import svm
from tests.support.caches import CACHE, kept, place

_QEMU = "usr/bin/qemu-system-x86_64"
_MODULES = b"/usr/lib/x86_64-linux-gnu/qemu"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def newer_qemu() -> str:
    """Debian 13's QEMU 10.0; returns the path of a program that runs it.

    Not 10.1 or newer: with device files those need Linux 6.13 (container/backend.py), and the lab has 6.12.
    """
    return _qemu(["trixie"])


def newest_qemu() -> str:
    """Debian 13's backport, QEMU 11 or later, which runs the lab.

    Without KVM a CPU of QEMU 10.0 sometimes stops receiving timer interrupts, and the lab hangs ("rcu_preempt kthread
    starved"). With QEMU 11.1 this did not happen in hours.
    """
    return _qemu(["trixie", "trixie-backports"], change=_patch)


def rust_virtiofsd() -> str:
    """Debian 13's virtiofsd; returns the path of a program that runs it."""
    return _program(_unpacked(["trixie"], ["virtiofsd"], "trixie-virtiofsd"), "usr/libexec/virtiofsd", "")


def _patch(tree: str) -> None:
    try:
        svm.patch(f"{tree}/usr/bin/qemu-system-x86_64")
    except ValueError as error:
        print(f"QEMU runs unpatched, which may hang guests of the lab: {error}")


def _qemu(suites: Sequence[str], *, change: Callable[[str], None] | None = None) -> str:
    """A QEMU that needs only its tree; returns the path of the program.

    It is an ELF program and not a script, which a jail would not support. It contains the absolute paths of its loader
    and libraries, and finds firmware and modules relative to its own path (QEMU util/cutils.c, get_relocated_path()).
    """

    def link(tree: str) -> None:
        if change is not None:
            change(tree)
        libraries = f"{place(name)}/usr/lib/x86_64-linux-gnu"
        words = ["--set-interpreter", f"{libraries}/ld-linux-x86-64.so.2", "--force-rpath", "--set-rpath", libraries]
        subprocess.run([_patchelf(), *words, f"{tree}/{_QEMU}"], check=True)
        _leave_modules(f"{tree}/{_QEMU}")

    name = f"{suites[-1]}-qemu-{'mended-linked' if change else 'linked'}"
    return f"{_unpacked(suites, ['qemu-system-x86', 'seabios'], name, link)}/{_QEMU}"


def _leave_modules(program: str) -> None:
    """Patch QEMU's module directory to one that does not exist: QEMU would find the modules of the installed QEMU and
    exit, since they are of another build."""
    with open(program, "rb") as file:
        code = file.read()
    assert code.count(_MODULES + b"\0") == 1
    with open(program, "wb") as file:
        file.write(code.replace(_MODULES + b"\0", _MODULES[:-4] + b"none\0"))


def _patchelf() -> str:
    """The path of Debian's patchelf, for this host's release."""

    def unpack(tree: str) -> None:
        fetched = packages.fetch(["patchelf"], cache=CACHE, progress=print)
        packages.unpack(fetched, tree, select=lambda name: name == "usr/bin/patchelf")

    return f"{kept('patchelf', unpack)}/usr/bin/patchelf"


def _unpacked(
    suites: Sequence[str], names: Sequence[str], name: str, change: Callable[[str], None] | None = None
) -> str:
    """The directory of that name with packages of a suite; ``change`` is called with it when it is created."""
    suite = suites[-1]

    def unpack(tree: str) -> None:
        options = apt_options(*suites)
        fetched = packages.fetch(names, cache=f"{CACHE}/{suite}", progress=print, options=options)
        paths = ("usr/bin/qemu-system-x86_64", "usr/libexec/", "usr/share/qemu/", "usr/share/seabios/")
        packages.unpack(
            fetched, tree, select=lambda name: name.startswith(paths) or (".so" in name and name.startswith("usr/lib"))
        )
        if change is not None:
            change(tree)

    return kept(name, unpack)


def apt_options(*suites: str) -> list[str]:
    """apt's options for suites of the mirror of the host's first source; the last suite is preferred."""
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    mirror = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()[0]
    directory = f"{CACHE}/{suites[-1]}"
    os.makedirs(f"{directory}/lists/partial", exist_ok=True)
    with open(f"{directory}/sources.list", "w") as file:
        file.writelines(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n" for suite in suites)
    options = [
        f"Dir::Etc::sourcelist={directory}/sources.list", "Dir::Etc::sourceparts=-",
        f"Dir::State::lists={directory}/lists", f"APT::Default-Release={suites[-1]}",
    ]  # fmt: skip
    update = ["apt-get", "-qq", *(part for option in options[:3] for part in ("-o", option)), "update"]
    subprocess.run(update, check=True, capture_output=True)
    return options


def _program(tree: str, path: str, arguments: str) -> str:
    program = f"{tree}/{os.path.basename(path)}"
    libraries = f"{tree}/usr/lib/x86_64-linux-gnu"
    loader = f"{libraries}/ld-linux-x86-64.so.2 --library-path {libraries} {tree}/{path} {arguments}"
    with open(f"{program}.{os.getpid()}", "w") as file:
        file.write(f"""#!/bin/sh\nexec {loader} "$@"\n""")
    os.chmod(f"{program}.{os.getpid()}", 0o755)
    os.rename(f"{program}.{os.getpid()}", program)
    return program
