"""config.md, root and mounts: the files of the container and their mount options."""

from __future__ import annotations

import os
import re

from tests.conformance.subject import Bundle, Subject
from tests.conformance.suite import Answers, Case, Group, Spec, inside

ROOT = "config.md#root"
MOUNTS = "config.md#mounts"
LINUX = "config.md#linux-mount-options"
PROPAGATION = "config-linux.md#rootfs-mount-propagation"


def _options(path: str) -> str:
    """A command that prints the options of the last mount at a path, and the following fields."""
    return f"busybox awk '$5 == \"{path}\"' /proc/self/mountinfo | busybox tail -n 1 | busybox cut -d' ' -f6-"


def _mounts(spec: Spec, bundle: Bundle) -> None:
    spec["root"]["readonly"] = True
    spec["process"]["noNewPrivileges"] = False
    bundle.tmpfs("/tmpfs", "nosuid", "nodev", "noexec", "noatime", "size=1m", "mode=1751")
    bundle.make("directory")
    bundle.make("directory/file", "a file\n")
    bundle.make("directory/program", "#!/bin/sh\necho it ran\n", mode=0o755)
    bundle.bind(f"{bundle.path}/directory", "/rw", "bind", "rw")
    bundle.bind("directory", "/relative", "bind")
    bundle.bind(f"{bundle.path}/directory", "/ro", "bind", "ro")
    bundle.bind(f"{bundle.path}/directory", "/flags", "bind", "nosuid", "nodev", "noexec")
    bundle.bind(f"{bundle.path}/directory/file", "/made/by/runtime/file", "bind", "ro")
    # A file system of the host below the source: an rbind includes it.
    bundle.make("tree")
    with open(f"{bundle.mount('tree/below')}/there", "w"):
        pass
    bundle.bind(f"{bundle.path}/tree", "/rbind", "rbind")
    bundle.bind(f"{bundle.path}/tree", "/rro", "rbind", "rro")
    bundle.bind(f"{bundle.path}/tree", "/bind", "bind")
    bundle.tmpfs("/order", "mode=755")
    bundle.bind(f"{bundle.path}/directory", "/order/inner", "bind")
    bundle.bind(f"{bundle.path}/directory", "/over", "bind")
    bundle.tmpfs("/over", "mode=755")
    os.symlink("/data", f"{bundle.rootfs}/link")
    bundle.bind(f"{bundle.path}/directory", "/link/target", "bind")
    bundle.make("rootfs/filled/kept", "kept\n")
    bundle.tmpfs("/filled", "tmpcopyup")
    bundle.tmpfs("/private", "rprivate")


MOUNTED = inside(
    "mounts",
    _mounts,
    [
        Case("root-readonly", ROOT, "the root file system is read-only", re.compile("Read-only file system"),
             "touch /new"),
        Case("mount-tmpfs-flags", LINUX, "nosuid, nodev, noexec and noatime are set on a tmpfs",
             re.compile("^(?=.*nosuid)(?=.*nodev)(?=.*noexec)(?=.*noatime)"), _options("/tmpfs")),
        Case("mount-tmpfs-size", MOUNTS, "the size of a tmpfs is limited", re.compile("No space left on device"),
             "dd if=/dev/zero of=/tmpfs/f bs=1k count=1500"),
        Case("mount-tmpfs-mode", MOUNTS, "the mode of a tmpfs is set", "1751", "stat -c %a /tmpfs"),
        Case("mount-bind", MOUNTS, "a bound directory is the host's, for reading and writing", "a file\nnew",
             "cat /rw/file; echo new > /rw/new; cat /rw/new"),
        Case("mount-relative", MOUNTS, "a bind's relative source is below the bundle", "a file", "cat /relative/file"),
        Case("mount-ro", LINUX, "ro: a bound directory is read-only", re.compile("Read-only file system"),
             "touch /ro/x"),
        Case("mount-bind-flags", LINUX, "nosuid, nodev and noexec are set on a bind",
             re.compile("^(?=.*nosuid)(?=.*nodev)(?=.*noexec)"), _options("/flags")),
        Case("mount-noexec", LINUX, "noexec: programs of the mount cannot be executed", "it ran\nno",
             "/rw/program; /flags/program 2>/dev/null || echo no"),
        Case("mount-file", MOUNTS, "a file is bound; its destination and the directories above are created", "a file",
             "cat /made/by/runtime/file"),
        Case("mount-file-ro", LINUX, "ro: a bound file is read-only", re.compile("Read-only file system"),
             "echo x > /made/by/runtime/file"),
        Case("mount-rbind", LINUX, "rbind includes mounts below the source", "there", "ls /rbind/below"),
        Case("mount-bind-alone", LINUX, "bind does not include mounts below the source", "", "ls /bind/below"),
        Case("mount-rro", LINUX, "rro: mounts below are read-only too",
             re.compile("Read-only file system"), "touch /rro/below/x"),
        Case("mount-order", MOUNTS, "mounts are made in order: one inside another", "a file", "cat /order/inner/file"),
        Case("mount-over", MOUNTS, "mounts are made in order: one over another", "", "ls /over"),
        Case("mount-symlink", MOUNTS, "a link in a destination is resolved inside the root", "a file",
             "cat /data/target/file"),
        Case("mount-tmpcopyup", LINUX, "tmpcopyup: a tmpfs begins with the files of its directory", "kept",
             "cat /filled/kept"),
        Case("mount-private", LINUX, "the propagation of a mount is rprivate", re.compile("^(?!.*(shared|master):)"),
             _options("/private")),
        Case("rootfs-private", PROPAGATION, "the root is private by default",
             re.compile("^(?!.*shared:)"), _options("/")),
    ],
)  # fmt: skip


def _ask_propagation(subject: Subject) -> Answers:
    """Mounts that the host makes while the container runs, below sources bound as slave and as private."""
    bundle = subject.bundle(["/bin/sh", "-c", "while :; do sleep 3600; done"])
    bundle.mount("slave", shared=True)
    bundle.make("slave/below")
    bundle.mount("private", shared=True)
    bundle.make("private/below")
    bundle.bind(f"{bundle.path}/slave", "/slave", "rbind", "rslave")
    bundle.bind(f"{bundle.path}/private", "/private", "rbind", "rprivate")
    bundle.spec["linux"]["rootfsPropagation"] = "rslave"
    created = subject.create(bundle)
    assert created.code == 0, created
    assert subject("start", bundle.name).code == 0
    for name in ("slave", "private"):
        with open(f"{bundle.mount(f'{name}/below')}/late", "w"):
            pass
    answers = {f"mount-{name}-late": subject("exec", bundle.name, "/bin/ls", f"/{name}/below").output.strip()
               for name in ("slave", "private")}  # fmt: skip
    subject("delete", "--force", bundle.name)
    return answers


PROPAGATED = Group(
    "propagation",
    [
        Case("mount-slave-late", LINUX, "rslave: later mounts of the host below the source are visible", "late"),
        Case("mount-private-late", LINUX, "rprivate: later mounts of the host are not visible", ""),
    ],
    _ask_propagation,
)


def _rootfs(propagation: str) -> Group:
    def edit(spec: Spec, _bundle: Bundle) -> None:
        spec["linux"]["rootfsPropagation"] = propagation

    says = f"the propagation of the root is {propagation}"
    case = Case(f"rootfs-{propagation}", PROPAGATION, says, re.compile(f"{propagation}(:|$| )"), _options("/"))
    return inside(f"root {propagation}", edit, [case])


def _propagation(propagation: str) -> Group:
    def edit(_spec: Spec, bundle: Bundle) -> None:
        bundle.tmpfs("/mount", propagation)

    says = f"the propagation of a mount is {propagation}"
    case = Case(f"mount-{propagation}", LINUX, says, re.compile(f"{propagation}(:|$| )"), _options("/mount"))
    return inside(f"mount {propagation}", edit, [case])


GROUPS = [
    MOUNTED,
    PROPAGATED,
    _propagation("shared"),
    _propagation("unbindable"),
    _rootfs("shared"),
    _rootfs("unbindable"),
]
