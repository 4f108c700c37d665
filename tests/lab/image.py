"""The kernel of the lab, with VFIO device files, and its initial ramfs: busybox mounts the files of this host."""

from __future__ import annotations

import os
import stat
import tempfile
import tomllib

from hawse.vm.image import packages, store
from hawse.vm.image.cpio import write_archive
from hawse.vm.image.file_tree import add_programs
from hawse.vm.image.modules import add_kernel_modules
from hawse.vm.image.vmlinux import bootable
from tests.support import device_kernel as kernel

_MODULES = [
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
    "vfio_pci",
    "vfio_iommu_type1",
    "e1000e",
    "igb",
    # KVM, and modules for the networks of engines.
    "kvm_amd",
    "veth",
    "tun",
    "sch_ingress",
    "cls_u32",
    "act_mirred",
    # Interface types for the networks of containers.
    "bridge",
    "bonding",
    "8021q",
    "ipvlan",
    "igbvf",
]
_NODES = (("dev/console", stat.S_IFCHR | 0o600, 5, 1),)

_INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
modprobe -a {modules}
mkdir -p /host /over /new
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o $options,ro,cache=loose hostfs /host || exec sh
mount -t tmpfs -o size=70% tmpfs /over
mkdir /over/upper /over/scratch
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/scratch overlay /new
for directory in proc sys dev; do mount --move /$directory /new/$directory; done
mount -t tmpfs tmpfs /new/run
exec switch_root /new {python} {inside} "$@"
"""


def build(directory: str, *, python: str, inside: str, cache: str) -> tuple[str, str]:
    """Build both; returns their paths. ``inside``: the program that the lab runs with ``python``."""
    os.makedirs(directory, exist_ok=True)
    with open(f"{store.recipe_directory()}/recipe.toml", "rb") as file:
        recipe = tomllib.load(file)
    built = kernel.build()
    with tempfile.TemporaryDirectory(dir=directory) as work:
        full, tree = f"{work}/full", f"{work}/tree"
        packages.unpack(packages.fetch(recipe["packages"], cache=cache, progress=print), full)
        packages.unpack((), tree)
        for name in ("dev", "proc", "sys", "usr/sbin"):
            os.makedirs(f"{tree}/{name}", exist_ok=True)
        add_programs(full, tree, ["usr/bin/busybox"], {"usr/sbin/modprobe": "../bin/busybox"})
        for name in ("sh", "mount", "mkdir", "switch_root"):
            os.symlink("busybox", f"{tree}/usr/bin/{name}")
        add_kernel_modules(full, tree, built.modules, os.path.basename(built.modules), _MODULES)
        with open(f"{tree}/init", "w") as init:
            init.write(_INIT.format(modules=" ".join(_MODULES), python=python, inside=inside))
        os.chmod(f"{tree}/init", 0o755)
        with open(built.image, "rb") as source, open(f"{directory}/vmlinux", "wb") as target:
            target.write(bootable(source.read()))
        with open(f"{directory}/initrd.cpio", "wb") as output:
            write_archive(tree, output, nodes=_NODES)
    return f"{directory}/vmlinux", f"{directory}/initrd.cpio"
