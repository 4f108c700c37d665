"""Errors of annotations, the configuration, the guest image, the cache and `hawse install`."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

from hawse.agent.system.modules import Modules
from hawse.commands.client import check_version
from hawse.config import ANNOTATIONS, Config, Devices
from hawse.host.notify import problem, report_ready
from hawse.install import edits
from hawse.oci.process.notify_socket import Notify
from hawse.planner.devices.device_options import device_options
from hawse.planner.kernel_modules import check_loaded
from hawse.planner.notify_target import unheard
from hawse.state.store import Store
from hawse.vfio.emulated import read_table
from hawse.vm.image import lock, packages
from hawse.vm.image import store as image
from hawse.vm.image.modules import add_autoload
from tests.errors.situation import Act, hurried
from tests.support.sysfs import FakeSysfs


def locked_image(host: FakeSysfs) -> None:
    directory = f"{host.root}/images/20c5aa3eb55e"
    os.makedirs(directory)
    with lock.exclusive(directory), mock.patch.object(lock, "time", hurried()):
        lock.hold(directory)


def annotation(name: str, value: str, allowed: tuple[str, ...] = ANNOTATIONS) -> Act:
    config = Config(devices=Devices(annotations=allowed))
    return lambda _host: device_options(config, {name: value})


def emulated(key: str, *models: str) -> Act:
    return lambda _host: read_table({key: models})


def other_version(host: FakeSysfs) -> None:
    store = Store(f"{host.root}/state", "c1")
    store.make()
    lock = store.lock()
    Path(f"{store.path}/lock").write_text("2 9.0.0\n")
    try:
        check_version(store, "exec")
    finally:
        os.close(lock)


def other_image(host: FakeSysfs) -> None:
    os.makedirs(f"{host.root}/cache/images", mode=0o755)
    Path(f"{host.root}/cache/images/current-0123456789abcdef").touch()
    for directory in ("cache", "cache/images"):
        os.chmod(f"{host.root}/{directory}", 0o755)
    image.locate(cache=f"{host.root}/cache")


def open_cache(host: FakeSysfs) -> None:
    os.mkdir(f"{host.root}/cache")
    os.chmod(f"{host.root}/cache", 0o777)
    image.locate(cache=f"{host.root}/cache")


def others_cache(host: FakeSysfs) -> None:
    os.mkdir(f"{host.root}/cache")
    os.chmod(f"{host.root}/cache", 0o755)
    os.chown(f"{host.root}/cache", 1000, -1)
    image.locate(cache=f"{host.root}/cache")


def other_package(host: FakeSysfs) -> None:
    Path(f"{host.root}/crun_1.8.1_amd64.deb").write_text("another program")
    packages._verify(f"{host.root}/crun_1.8.1_amd64.deb", "0" * 64)


def with_tables(host: FakeSysfs) -> str:
    """Create a kernel's module directory with one module; returns its path."""
    directory = f"{host.root}/usr/lib/modules/6.1.0-56-amd64"
    os.makedirs(directory)
    Path(f"{directory}/modules.dep").write_text("kernel/net/bridge/br_netfilter.ko: \n")
    Path(f"{directory}/modules.builtin").write_text("")
    return directory


def not_in_kernel(host: FakeSysfs) -> None:
    release = os.path.basename(with_tables(host))
    add_autoload(host.root, f"{host.root}/out", release, [], ["br_netfilter", "zfs"])


def not_loaded(host: FakeSysfs) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path)

    Modules(with_tables(host), load=refuse).require(("br_netfilter",))


SITUATIONS: dict[str, Act] = {
    "An annotation is unknown": annotation("hawse.vf_token", "x"),
    "An annotation is not allowed": annotation("hawse.devices", "0000:3b:00.0", ()),
    "The token in an annotation is invalid": annotation("hawse.vf-token", "secret"),
    "The value of an annotation is not a boolean": annotation("hawse.keep-addresses", "yes"),
    "An emulated group's key is not a number": emulated("five", "edu"),
    "An emulated group's model is unknown": emulated("5", "rtl8139"),
    "An emulated group is empty": emulated("5"),
    "A module of `image.extra_modules` is not in the kernel package": not_in_kernel,
    "A module of `vm.load_modules` is not in the image": lambda host: check_loaded(["zfs"], with_tables(host)),
    "The guest cannot load a module of `vm.load_modules`": not_loaded,
    "Other users can change the cache": open_cache,
    "The cache belongs to another user": others_cache,
    "A downloaded package differs from apt's lists": other_package,
    "A container is created, and the caller's service manager cannot be notified (a warning)": lambda _host: unheard(
        "/run/none/notify", problem(Notify(host="/run/none/notify", caller=True))
    ),
    "A container is ready, and the caller's service manager cannot be notified": lambda _host: report_ready(
        "/run/none/notify", "READY=1", pid=1
    ),
    "A container was created by another version of hawse": other_version,
    "There is no guest image of this version of hawse": other_image,
    "The guest image was removed while a sandbox was being started": lambda _host: lock.hold("/images/20c5aa3eb55e"),
    "Another process has the lock of the guest image": locked_image,
    "containerd's configuration has a version that hawse does not know": lambda _host: edits.add_containerd(
        "version = 9", edits.Registration("hawse", "/usr/bin/hawse")
    ),
    "containerd's configuration has version 1 or none": lambda _host: edits.add_containerd(
        "oom_score = 0", edits.Registration("hawse", "/usr/bin/hawse")
    ),
}  # fmt: skip
