"""A host whose cgroups systemd manages: hawse requests a scope, also for Podman.

The first process of the lab is not systemd. The tests start a systemd in private namespaces, as in a container.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.host import Lab
from tests.lab.steps import EDU, RUNTIME, SECONDS, make_shell_bundle, read_json
from tests.support.runtime import Result

pytestmark = pytest.mark.lab

#: Starts systemd with a cgroup as the root of its hierarchy, and with its bus as the only unit. No other process may be
#: in that cgroup, since a cgroup with processes cannot enable controllers for its children (cgroup-v2.rst, "No Internal
#: Process Constraint").
_START = r"""
cd /sys/fs/cgroup
for controller in $(cat cgroup.controllers); do echo +$controller >cgroup.subtree_control; done
mkdir host
echo $$ >host/cgroup.procs
unshare --cgroup --mount --pid --fork sh -c '
    members=2
    while [ $members -gt 1 ]; do
        members=0
        while read pid; do members=$((members + 1)); done </sys/fs/cgroup/host/cgroup.procs
    done
    mount -t proc proc /proc
    cd /
    umount --lazy /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs tmpfs /run
    mkdir -p /run/systemd/system /run/dbus
    cd /run/systemd/system
    printf "[Unit]\nDefaultDependencies=no\nRequires=dbus.service\nAfter=dbus.service\n" >host.target
    printf "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n" >dbus.socket
    printf "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nExecStart=" >dbus.service
    printf "/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n" >>dbus.service
    cd /
    exec env container=lab /lib/systemd/systemd --system --unit=host.target
' &
until pgrep --parent $! >/dev/null; do :; done
for pid in $! $$; do echo $pid >cgroup.procs; done
wait
"""
#: Prints the pid of systemd as soon as it is on its bus.
_AWAIT = """
until pid=$(pgrep -x systemd) && nsenter -t $pid -m -p -C busctl list 2>/dev/null | grep -q systemd1; do sleep 0.5; done
echo $pid
"""
_END = r"""
kill -KILL $1
while kill -0 $1; do sleep 0.2; done
find /sys/fs/cgroup/host -depth -type d -exec rmdir {} \;
"""
#: Prints the kind and the cgroup of each process of hawse or QEMU.
_MEMBERS = """
import os
from tests.support.processes import all_pids, command_line
for pid in set(all_pids()) - {os.getpid()}:
    words = command_line(pid)
    for what in ("qemu-system", "virtiofsd", "hawse.monitor.main", "hawse["):
        if what in words:
            print(what, open(f"/proc/{pid}/cgroup").read().strip())
            break
"""
_PODMAN = """
import json, sys
from tests.lab.steps import SETTINGS
from tests.support.podman import IMAGE, Podman
from tests.support.runtime import Runtime
runtime = Runtime("/run")
runtime.configure(SETTINGS)
with Podman("/run/podman", runtime, cgroup_manager="systemd") as podman:
    words = ["run", "--detach", "--name", "one", "--network", "none", "--pids-limit", "77", IMAGE, "sleep", "100000"]
    done = podman(*words)
    assert done.code == 0, done
    seen = podman.inspect("one")
    with open(f"/proc/{seen['State']['Pid']}/cgroup") as file:
        cgroup = file.read().strip()
    print(json.dumps([seen["Id"], cgroup, podman.must("stats", "--no-stream", "--format", "{{.MemUsage}}", "one")]))
    podman.must("rm", "--force", "--time", "0", "one")
"""


class Host:
    """The lab in the namespaces of this systemd."""

    def __init__(self, lab: Lab, pid: int) -> None:
        self._lab = lab
        self._inside = ["nsenter", "--target", str(pid), "--mount", "--pid", "--cgroup"]

    def run(self, *argv: str) -> Result:
        return self._lab.run([*self._inside, *argv], timeout=2 * SECONDS)

    def python(self, text: str, *arguments: str) -> Result:
        """Run a Python program, as Lab.python() does."""
        here = [
            self._lab.run(["pwd"]).output.strip(),
            self._lab.python("import sys; print(sys.executable)").output.strip(),
        ]
        return self.run("env", f"--chdir={here[0]}", here[1], "-c", text, *arguments)

    @property
    def scopes(self) -> list[str]:
        """The scopes of containers."""
        listed = self.run("systemctl", "list-units", "--type=scope", "--plain", "--no-legend")
        assert listed.code == 0, listed
        names = [line.split()[0] for line in listed.output.splitlines()]
        return [name for name in names if name != "init.scope"]


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    """A host with systemd. Afterwards its processes and cgroups are removed."""
    started = lab.run(["sh", "-c", 'setsid sh -c "$1" </dev/null >/run/systemd.log 2>&1 &', "sh", _START])
    assert started.code == 0, started
    pid = lab.run(["timeout", "600", "sh", "-c", _AWAIT], timeout=700)
    assert pid.code == 0, lab.run(["cat", "/run/systemd.log"])
    yield Host(lab, int(pid.output))
    lab.run(["sh", "-c", _END, "sh", pid.output.strip()])
    assert lab.run(["test", "-e", "/sys/fs/cgroup/host"]).code == 1


def test_sandbox_is_in_a_scope_of_systemd(lab: Lab, host: Host, probe: str) -> None:
    bundle = make_shell_bundle(lab, "scope", EDU, probe=probe, annotations={})
    edit = """
import json, sys
with open(f"{sys.argv[1]}/config.json") as file:
    spec = json.load(file)
spec["linux"]["cgroupsPath"] = "tests-lab.slice:hawse:one"
with open(f"{sys.argv[1]}/config.json", "w") as file:
    json.dump(spec, file)
"""
    assert lab.python(edit, bundle).code == 0
    started = host.run(*RUNTIME, "--systemd-cgroup", "run", "--detach", "--bundle", bundle, "one")
    assert started.code == 0, started
    assert "systemd" not in started.errors
    members = dict(line.split(" ", 1) for line in host.python(_MEMBERS).output.splitlines())
    scope = "0::/tests.slice/tests-lab.slice/hawse-one.scope"
    assert members == dict.fromkeys(["qemu-system", "virtiofsd", "hawse["], scope) | {
        "hawse.monitor.main": "0::/hawse.control"
    }
    assert host.scopes == ["hawse-one.scope"]
    [device] = json.loads(host.run(*RUNTIME, "state", "one").output)["vfio"]
    probed = host.run(*RUNTIME, "exec", "one", "/bin/probe", device["nodes"][0])
    assert read_json(probed.output)["passed"] is True, probed
    deleted = host.run(*RUNTIME, "delete", "--force", "one")
    assert (deleted.code, deleted.errors) == (0, ""), deleted
    assert host.scopes == []


def test_containers_of_podman_are_in_scopes(host: Host) -> None:
    done = host.python(_PODMAN)
    assert done.code == 0, done
    name, cgroup, memory = json.loads(done.output.splitlines()[-1])
    assert cgroup.startswith(f"0::/machine.slice/libpod-{name}.scope")
    assert memory.split()[0] != "0B", "the machine's, which has hundreds of megabytes"
    assert host.scopes == []
