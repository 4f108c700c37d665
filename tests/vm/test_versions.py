"""Other supported versions: a newer QEMU, and the virtiofsd in Rust."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hawse.vm import qemu_features, virtiofsd
from tests.support.bundles import FILE_CAPABILITIES, UNLIMITED, add_devices, build_probe, make_bundle, write
from tests.support.loops import add_disk, loop_devices
from tests.support.runtime import Runtime
from tests.support.suites import newer_qemu, rust_virtiofsd

pytestmark = pytest.mark.vm


def test_newer_qemu_supports_a_device_and_a_disk(runtime: Runtime, tmp_path: Path) -> None:
    qemu = newer_qemu()
    qemu_capabilities = qemu_features.ask(qemu, directory=str(tmp_path))
    assert qemu_capabilities.version.startswith("10.0.")
    assert "igb" in qemu_capabilities.devices, "features that Debian 12's QEMU lacks are queried, not derived"
    assert "vf-token" in qemu_capabilities.vfio_properties
    runtime.configure(f'[vm]\nqemu = "{qemu}"\n[emulated]\n5 = ["edu"]\n')
    bundle = str(tmp_path / "bundle")
    script = "probe /dev/vfio/5 && dd if=/dev/xvda of=/dev/xvda bs=512 count=1 seek=8 conv=fsync"
    spec = make_bundle(bundle, ["/bin/sh", "-c", script], rlimits=[UNLIMITED])
    build_probe(f"{bundle}/rootfs/bin")
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5)])
    with loop_devices(str(tmp_path), []) as [disk]:
        add_disk(spec, "/dev/xvda", disk, "rw")
        write(bundle, spec)
        disk.fill(0, b"of the host")
        result = runtime("run", "--bundle", bundle, "c1")
        assert result.code == 0, result
        assert json.loads(result.output)["passed"] is True
        assert disk.read(8 * 512, 11) == b"of the host"


def test_virtiofsd_in_rust_shares_the_files(runtime: Runtime, tmp_path: Path) -> None:
    program = rust_virtiofsd()
    assert virtiofsd.is_rust(program)
    runtime.configure(f'[vm]\nvirtiofsd = "{program}"\nshare = "virtiofs"\n')
    bundle = str(tmp_path / "bundle")
    script = "cd /data; cat in; echo out > out; chown 42:43 out; chmod 640 out"
    make_bundle(bundle, ["/bin/sh", "-c", script], capabilities=FILE_CAPABILITIES)
    Path(bundle, "rootfs/data/in").write_text("in\n")
    result = runtime("run", "--bundle", bundle, "c1")
    assert (result.code, result.output) == (0, "in\n"), result
    status = os.stat(f"{bundle}/rootfs/data/out")
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (42, 43, 0o640)
