"""The runtime under test: any program with the command line of runc."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support import evidence
from tests.support.bundles import make_bundle
from tests.support.patience import patience
from tests.support.runtime import HAWSE, Result
from tests.support.subprocesses import run

#: The time limit of a command, passed to :func:`patience`.
_SECONDS = 45


def chosen() -> list[list[str]]:
    """The command lines of the runtimes: that of the variable RUNTIME, or hawse and, to test the cases, runc."""
    named = os.environ.get("RUNTIME")
    return [shlex.split(named)] if named else [["runc"], [HAWSE]]


@dataclass
class Bundle:
    """A bundle of a container with this name. ``spec`` may be changed until the bundle is passed to a runtime."""

    name: str
    path: str
    spec: dict[str, Any]
    mounted: list[str] = field(default_factory=list)

    @property
    def rootfs(self) -> str:
        """The container's root file system, on the host."""
        return f"{self.path}/rootfs"

    def make(self, path: str, text: str | None = None, *, mode: int = 0o755) -> str:
        """Create a directory, or a file with a text, below the bundle; returns its path."""
        location = f"{self.path}/{path}"
        if text is None:
            os.makedirs(location, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(location), exist_ok=True)
            with open(location, "w") as file:
                file.write(text)
        os.chmod(location, mode)
        return location

    def mount(self, path: str, *, shared: bool = False) -> str:
        """Mount a tmpfs of the host at a path below the bundle until the end of the runtime; returns the path."""
        directory = self.make(path)
        subprocess.run(["mount", "-t", "tmpfs", "conformance", directory], check=True)
        self.mounted.append(directory)
        if shared:
            subprocess.run(["mount", "--make-shared", directory], check=True)
        return directory

    def bind(self, source: str, destination: str, *options: str) -> None:
        """Add a bind mount."""
        mount = {"destination": destination, "type": "bind", "source": source, "options": list(options)}
        self.spec["mounts"].append(mount)

    def tmpfs(self, destination: str, *options: str) -> None:
        """Add a tmpfs."""
        mount = {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": list(options)}
        self.spec["mounts"].append(mount)


class Subject:
    """A runtime with a private root directory. Its files are below ``directory``, which all users can enter."""

    def __init__(self, command: Sequence[str], directory: str) -> None:
        self.name = os.path.basename(command[0])
        self._command = [*command, "--root", f"{directory}/state"]
        evidence.watch(f"{directory}/state")
        self._directory = directory
        self._bundles: list[Bundle] = []
        #: A unique prefix of the names of its containers and their cgroups.
        self.prefix = f"conformance-{os.urandom(4).hex()}"

    def argv(self, *arguments: str) -> list[str]:
        """The command line."""
        return [*self._command, *arguments]

    def __call__(self, *arguments: str, stdin: str | None = None) -> Result:
        """Run a command whose outputs no container inherits."""
        return run(self.argv(*arguments), stdin=stdin, seconds=_SECONDS)

    def bundle(self, argv: Sequence[str]) -> Bundle:
        """Create a bundle: the example of runc with a writable root, busybox and a private cgroup."""
        name = f"{self.prefix}-{len(self._bundles)}"
        path = f"{self._directory}/{name}"
        bundle = Bundle(name, path, make_bundle(path, argv))
        bundle.spec["linux"]["cgroupsPath"] = f"/{name}"
        self._bundles.append(bundle)
        return bundle

    def run(self, bundle: Bundle) -> Result:
        """Run `run` to the end of the container."""
        self._write(bundle)
        return self("run", "--bundle", bundle.path, bundle.name)

    def begin(self, bundle: Bundle) -> subprocess.Popen[bytes]:
        """Start `run`, which continues."""
        self._write(bundle)
        null = subprocess.DEVNULL
        argv = self.argv("run", "--bundle", bundle.path, bundle.name)
        return subprocess.Popen(argv, stdin=null, stdout=null, stderr=null)

    def create(self, bundle: Bundle, *options: str) -> Result:
        """Run `create`. The output of the container goes to the file "output" of its bundle."""
        self._write(bundle)
        words = self.argv("create", "--bundle", bundle.path, "--pid-file", f"{bundle.path}/pid", *options, bundle.name)
        # Files: the container would inherit a pipe and keep it open as long as it runs.
        with open(f"{bundle.path}/output", "w+") as output, open(f"{bundle.path}/errors", "w+") as errors:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, timeout=patience(_SECONDS), check=False
            )
            errors.seek(0)
            return Result(done.returncode, "", errors.read())

    def state(self, bundle: Bundle) -> dict[str, Any]:
        """Run `state`, which must succeed."""
        done = self("state", bundle.name)
        assert done.code == 0, done
        state: dict[str, Any] = json.loads(done.output)
        return state

    def close(self) -> None:
        """Delete all containers, and unmount the tmpfs of the host."""
        for bundle in self._bundles:
            self("delete", "--force", bundle.name)
            for path in reversed(bundle.mounted):
                subprocess.run(["umount", "--lazy", path], check=False)
        shutil.rmtree(self._directory)

    def _write(self, bundle: Bundle) -> None:
        with open(f"{bundle.path}/config.json", "w") as file:
            json.dump(bundle.spec, file)
