"""What root in a guest can do to the host by the share: nothing but change what is shared with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.bundles import make_bundle
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

#: Those of a privileged container that matter here: it mounts the share's root again.
CAPABILITIES = {
    kind: ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_FOWNER"]
    for kind in ("bounding", "effective", "permitted")
}
#: Tries to leave something in the root of the share and in its container's directory there; says what came of it.
SCRIPT = """
mkdir /tmp/share
busybox mount -t {kind} -o {options} hawse /tmp/share || exit 9
for place in /tmp/share /tmp/share/c1; do
    busybox ln -s {outside} $place/link && echo linked
    busybox mkfifo $place/fifo && echo fifo
    busybox mknod $place/node c 1 3 && echo node
    busybox mkdir $place/directory && echo directory
    busybox touch $place/file && echo file
    busybox mv $place/rootfs $place/other && echo moved
done 2>/tmp/said
busybox grep -c 'Read-only file system' /tmp/said
echo written >/tmp/share/c1/rootfs/written
"""


@pytest.mark.parametrize(
    ("share", "kind", "options"),
    [("virtiofs", "virtiofs", "rw"), ("9p", "9p", "trans=virtio,version=9p2000.L,access=any")],
)
def test_the_root_of_the_share_cannot_be_written_to(
    runtime: Runtime, tmp_path: Path, share: str, kind: str, options: str
) -> None:
    outside = tmp_path / "outside"
    (outside / "directory").mkdir(parents=True)
    (outside / "empty").touch()
    os.mkfifo(outside / "fifo")
    runtime.configure(f'[vm]\nshare = "{share}"\n')
    bundle = str(tmp_path / "bundle")
    script = SCRIPT.format(kind=kind, options=options, outside=outside)
    make_bundle(bundle, ["/bin/sh", "-c", script], capabilities=CAPABILITIES)
    before = sorted(os.listdir(outside))
    result = runtime("run", "--keep", "--bundle", bundle, "c1")
    assert (result.code, result.output) == (0, "11\n"), result
    assert Path(f"{bundle}/rootfs/written").read_text() == "written\n", "what is shared is"
    assert os.listdir(f"{runtime.root}/c1/share") == [], "nothing of the share is on the host's file system"
    assert runtime("delete", "c1").code == 0
    assert sorted(os.listdir(outside)) == before
