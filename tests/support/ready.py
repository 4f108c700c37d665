"""A fake host for containers, built of small files: an image, a QEMU that answers queries, a virtiofsd, a bundle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from hawse.config import Config, load_config
from hawse.notes import Note
from hawse.oci.load import load_bundle
from hawse.plan.capacity import Room
from hawse.plan.model import ContainerPlan, MachinePlan, SandboxPlan
from hawse.planner.sandbox import plan_container, plan_sandbox
from hawse.vm import templates
from hawse.vm.image import store
from hawse.vm.ram_file import MIB
from tests.support import bundles
from tests.support.command import Command
from tests.support.settings import with_annotations

Change = Callable[[dict[str, Any]], object]

_FAKE_QEMU = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_qemu.py")
#: The capabilities that the fake QEMU reports.
DEVICES = (
    "intel-iommu", "pcie-root-port", "pcie-pci-bridge", "virtio-serial-pci", "virtserialport", "virtio-rng-pci",
    "vfio-pci", "vhost-user-fs-pci", "edu", "e1000e",
)  # fmt: skip
#: The annotation of a pod's sandbox.
CRI = {"io.kubernetes.cri.container-type": "sandbox"}
#: The annotations of a container that joins the sandbox with the id "pod".
JOINS = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}
#: Emulated devices, which replace groups of the host in tests.
EMULATED = '[emulated]\n5 = ["edu"]\n6 = ["edu", "edu"]\n7 = ["e1000e"]\n'


def make_image(cache: str, *, kernel: bytes = b"kernel") -> str:
    """Create an image of a few bytes in a cache; returns its directory."""
    directory = f"{cache}/images/d1"
    for name in store.BESIDE:
        os.makedirs(f"{directory}/{name}")
        for table, text in (("dep", "kernel/net/sctp/sctp.ko: \n"), ("builtin", "kernel/net/ipv6/ipv6.ko\n")):
            with open(f"{directory}/{name}/modules.{table}", "w") as written:
                written.write(text)
    files = {"vmlinux": kernel, "initrd.cpio": b"archive"}
    for name, content in files.items():
        with open(f"{directory}/{name}", "wb") as file:
            file.write(content)
    manifest = {
        "digest": "d1",
        "sources": store.sources_digest("", ""),
        "release": "6.1.0",
        "build_seconds": 1.5,
        "beside": beside(directory),
        "files": {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()},
    }
    for path, text in ((f"{directory}/manifest.json", json.dumps(manifest)), (store.current_path(cache), "d1")):
        with open(path, "w") as file:
            file.write(text)
    return directory


def beside(directory: str) -> dict[str, dict[str, int | str]]:
    """The manifest's entries for the directories of an image."""
    digests = {name: store.tree_digest(f"{directory}/{name}") for name in store.BESIDE}
    return {name: {"size": size, "sha256": digest} for name, (size, digest) in digests.items()}


def make_program(path: str, script: str) -> str:
    """Write a shell script; returns its path."""
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\n{script}\n")
    os.chmod(path, 0o755)
    return path


def make_qemu(path: str, *, version: str = "9.2.1", devices: Sequence[str] = DEVICES) -> str:
    """Write a QEMU that answers queries (:mod:`hawse.vm.qemu_features`) and runs no guest. Returns its path."""
    numbers = dict(zip(("major", "minor", "micro"), map(int, version.split(".")), strict=True))
    names = [[{"name": name} for name in group] for group in (devices, ["hpet", "usb"], ["iommufd"], ["vf-token"])]
    options = [{"option": "sandbox", "parameters": []}]
    answers = [{"QMP": {}}, *({"return": value} for value in ({}, {"qemu": numbers}, *names, options))]
    lines = "\n".join(json.dumps(answer) for answer in answers)
    return make_program(path, f"cat >/dev/null <<END\nEND\ncat <<'END'\n{lines}\nEND")


def keep_template(cache: str, digest: str, machine: MachinePlan, *, used_mib: int = 0) -> str:
    """Store a template of a VM under a digest, with this amount of non-zero memory; returns its directory."""
    draft = templates.begin(cache, digest, machine.shape)
    assert draft is not None
    ram = os.memfd_create("ram")
    os.ftruncate(ram, 4 * MIB)
    os.pwrite(ram, b"x" * used_mib * MIB, 0)
    draft.fill(ram, b"state")
    os.close(ram)
    draft.commit()
    draft.close()
    return f"{cache}/templates/{digest}"


class Ready:
    """The host's files below ``directory``; ``config`` is its configuration file."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.cache = f"{directory}/cache"
        make_image(self.cache)
        self.qemu = make_qemu(f"{directory}/qemu")
        self.virtiofsd = make_program(f"{directory}/virtiofsd", "echo --shared-dir --fd")
        self.bundle = f"{directory}/bundle"
        os.makedirs(f"{self.bundle}/rootfs")
        self.write()

    def config(self, *, vm: str = "", more: str = "") -> str:
        """The configuration's text: ``vm`` lines after those that name the programs, then other sections."""
        # A QEMU that is a script cannot be confined.
        lines = {"qemu": self.qemu, "virtiofsd": self.virtiofsd, "accel": "tcg", "confine": "off"}
        given = {line.partition(" =")[0] for line in vm.splitlines()}
        own = "".join(f'{key} = "{value}"\n' for key, value in lines.items() if key not in given)
        return f'[vm]\n{own}{vm}\n[image]\ncache = "{self.cache}"\n{more}\n'

    def write(self, change: Change = lambda _spec: None) -> None:
        """Write the bundle's specification with a change."""
        spec = bundles.specification(["sh"])
        change(spec)
        bundles.write(self.bundle, spec)


def annotated(annotations: dict[str, str], *devices: bundles.Device) -> Change:
    """A change of a specification that adds annotations and devices."""

    def change(spec: dict[str, Any]) -> None:
        spec["annotations"] = annotations
        if devices:
            bundles.add_devices(spec, devices)

    return change


def limited(**resources: Any) -> Change:
    """A change of a specification that sets linux.resources, in a cgroup of the host."""
    return lambda spec: spec["linux"].update({"resources": resources, "cgroupsPath": "/x"})


class Said:
    """A log that records its messages."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.details: list[str] = []

    def warning(self, message: str) -> None:
        """Note it."""
        self.warnings.append(message)

    def debug(self, message: str) -> None:
        """Note it."""
        self.details.append(message)

    def tell(self, notes: Sequence[Note]) -> None:
        """Note them."""
        for note in notes:
            (self.warnings if note.level == "warning" else self.details).append(note.text)


class Planner(Ready):
    """Creates plans of this host's bundle; ``said``: the log of the last one. ``config``: the configuration's text."""

    def load(self, config: str | None = None) -> Config:
        """The configuration, loaded from its file."""
        path = f"{self.directory}/config.toml"
        with open(path, "w") as file:
            file.write(with_annotations(self.config() if config is None else config))
        return load_config(path)

    def sandbox(self, config: str | None = None, **options: Any) -> SandboxPlan:
        """The plan of a sandbox, c1."""
        self.said = Said()
        plan, notes = plan_sandbox(load_bundle(self.bundle), self.load(config), name="c1", **options)
        self.said.tell(notes)
        return plan

    def container(self, room: Room, config: str | None = None, **options: Any) -> ContainerPlan:
        """The plan of a container that joins one, c2."""
        self.said = Said()
        plan, notes = plan_container(load_bundle(self.bundle), self.load(config), room, name="c2", **options)
        self.said.tell(notes)
        return plan


class Sandboxes(Ready):
    """This host with tests/support/fake_qemu.py as its QEMU, and `hawse` for it: sandboxes without VMs.

    As a context manager it deletes remaining sandboxes at the end.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        os.rename(self.qemu, f"{directory}/answers")
        shutil.copy(_FAKE_QEMU, self.qemu)
        answers = subprocess.run([f"{directory}/answers"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
        with open(f"{self.qemu}.json", "wb") as file:
            file.write(answers.stdout)
        self.text = self.config(vm='share = "9p"', more=f"[template]\nenabled = false\n{EMULATED}")
        self.hawse = Command(directory)
        self.hawse.configure(self.text)

    def __enter__(self) -> Sandboxes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In this order: containers that have joined a sandbox are deleted before it.
        for name in self.names():
            self.hawse("delete", "--force", name)

    def program(self, *words: str, more: Change = lambda _spec: None, **changes: Any) -> None:
        """Set the bundle's program to one of the fake guest's; ``changes``: fields of the process."""

        def change(spec: dict[str, Any]) -> None:
            spec["process"] |= {"args": list(words)} | changes
            more(spec)

        self.write(change)

    def names(self) -> list[str]:
        """The names of the existing containers."""
        return sorted(os.listdir(self.hawse.root)) if os.path.isdir(self.hawse.root) else []

    def state(self, name: str) -> dict[str, Any]:
        """The output of `hawse state`."""
        state: dict[str, Any] = json.loads(self.hawse("state", name).output)
        return state
