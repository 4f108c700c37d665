"""A host that is ready for containers, made of small files: an image, a QEMU that answers, a virtiofsd, a bundle."""

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
from hawse.container.plan import plan_container, plan_sandbox
from hawse.oci.load import load_bundle
from hawse.sandbox.plan import ContainerPlan, MachinePlan, SandboxPlan, shape
from hawse.sandbox.room import Room
from hawse.vm import image, template
from hawse.vm.memory import MIB
from tests.support import bundles
from tests.support.command import Command
from tests.support.settings import with_annotations

Change = Callable[[dict[str, Any]], object]

_FAKE_QEMU = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_qemu.py")
#: What the QEMU says it has.
DEVICES = (
    "intel-iommu", "pcie-root-port", "pcie-pci-bridge", "virtio-serial-pci", "virtserialport", "virtio-rng-pci",
    "vfio-pci", "vhost-user-fs-pci", "edu", "e1000e",
)  # fmt: skip
#: The annotation of a pod's sandbox.
CRI = {"io.kubernetes.cri.container-type": "sandbox"}
#: Those of a container that joins a sandbox of the id "pod".
JOINS = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}
#: Devices of QEMU's, by which groups of the host can be tried without any.
EMULATED = '[emulated]\n5 = ["edu"]\n6 = ["edu", "edu"]\n7 = ["e1000e"]\n'


def make_image(cache: str, *, kernel: bytes = b"kernel") -> str:
    """An image of a few bytes in a cache; its directory."""
    directory = f"{cache}/images/d1"
    for name in image.BESIDE:
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
        "sources": image.sources_digest("", ""),
        "release": "6.1.0",
        "build_seconds": 1.5,
        "beside": beside(directory),
        "files": {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()},
    }
    for path, text in ((f"{directory}/manifest.json", json.dumps(manifest)), (image.current_path(cache), "d1")):
        with open(path, "w") as file:
            file.write(text)
    return directory


def beside(directory: str) -> dict[str, dict[str, int | str]]:
    """What a manifest says of the directories beside an image."""
    digests = {name: image.tree_digest(f"{directory}/{name}") for name in image.BESIDE}
    return {name: {"size": size, "sha256": digest} for name, (size, digest) in digests.items()}


def make_program(path: str, script: str) -> str:
    """A shell script; its path."""
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\n{script}\n")
    os.chmod(path, 0o755)
    return path


def make_qemu(path: str, *, version: str = "9.2.0", devices: Sequence[str] = DEVICES) -> str:
    """A QEMU that answers the questions of :mod:`hawse.vm.capabilities`, and no guest runs in it; its path."""
    numbers = dict(zip(("major", "minor", "micro"), map(int, version.split(".")), strict=True))
    names = [[{"name": name} for name in group] for group in (devices, ["hpet", "usb"], ["iommufd"], ["vf-token"])]
    options = [{"option": "sandbox", "parameters": []}]
    answers = [{"QMP": {}}, *({"return": value} for value in ({}, {"qemu": numbers}, *names, options))]
    lines = "\n".join(json.dumps(answer) for answer in answers)
    return make_program(path, f"cat >/dev/null <<END\nEND\ncat <<'END'\n{lines}\nEND")


def keep_template(cache: str, digest: str, machine: MachinePlan, *, used_mib: int = 0) -> str:
    """Keep a template of a machine under a digest, with so much memory that is not zero; its directory."""
    draft = template.begin(cache, digest, shape(machine))
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
    """The host below ``directory``; ``config`` is a configuration file for it."""

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
        """The configuration's text: lines of [vm] after those that name the programs, then other sections."""
        # A QEMU that is a script cannot be confined.
        lines = {"qemu": self.qemu, "virtiofsd": self.virtiofsd, "accel": "tcg", "confine": "off"}
        given = {line.partition(" =")[0] for line in vm.splitlines()}
        own = "".join(f'{key} = "{value}"\n' for key, value in lines.items() if key not in given)
        return f'[vm]\n{own}{vm}\n[image]\ncache = "{self.cache}"\n{more}\n'

    def write(self, change: Change = lambda _spec: None) -> None:
        """Write the bundle's specification, with a change."""
        spec = bundles.specification(["sh"])
        change(spec)
        bundles.write(self.bundle, spec)


def annotated(annotations: dict[str, str], *devices: bundles.Device) -> Change:
    """A change of a specification: these annotations, and devices."""

    def change(spec: dict[str, Any]) -> None:
        spec["annotations"] = annotations
        if devices:
            bundles.add_devices(spec, devices)

    return change


def limited(**resources: Any) -> Change:
    """A change of a specification: linux.resources, in a cgroup of the host."""
    return lambda spec: spec["linux"].update({"resources": resources, "cgroupsPath": "/x"})


class Said:
    """A log that remembers."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.details: list[str] = []

    def warning(self, message: str) -> None:
        """Note it."""
        self.warnings.append(message)

    def debug(self, message: str) -> None:
        """Note it."""
        self.details.append(message)


class Planner(Ready):
    """Plans of this host's bundle; ``said`` is the log of the last one. ``config`` is the configuration's text."""

    def load(self, config: str | None = None) -> Config:
        """The configuration, through its file."""
        path = f"{self.directory}/config.toml"
        with open(path, "w") as file:
            file.write(with_annotations(self.config() if config is None else config))
        return load_config(path)

    def sandbox(self, config: str | None = None, **options: Any) -> SandboxPlan:
        """The plan of a sandbox, c1."""
        self.said = Said()
        return plan_sandbox(load_bundle(self.bundle), self.load(config), name="c1", log=self.said, **options)

    def container(self, room: Room, config: str | None = None, **options: Any) -> ContainerPlan:
        """The plan of a container that joins one, c2."""
        self.said = Said()
        return plan_container(load_bundle(self.bundle), self.load(config), room, name="c2", log=self.said, **options)


class Sandboxes(Ready):
    """This host with tests/support/fake_qemu.py as its QEMU, and `hawse` for it: sandboxes without machines.

    As a context, what is left of them at the end is deleted.
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
        # In this order: what has joined a sandbox goes before it.
        for name in self.names():
            self.hawse("delete", "--force", name)

    def program(self, *words: str, more: Change = lambda _spec: None, **changes: Any) -> None:
        """Have the bundle's program be this one of the fake guest's; ``changes`` are of the process."""

        def change(spec: dict[str, Any]) -> None:
            spec["process"] |= {"args": list(words)} | changes
            more(spec)

        self.write(change)

    def names(self) -> list[str]:
        """The containers that there are."""
        return sorted(os.listdir(self.hawse.root)) if os.path.isdir(self.hawse.root) else []

    def state(self, name: str) -> dict[str, Any]:
        """What `hawse state` says."""
        state: dict[str, Any] = json.loads(self.hawse("state", name).output)
        return state
