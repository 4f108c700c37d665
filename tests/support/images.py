"""Container images for engines, built from local files: archives for `ctr image import`, `podman load`, `docker load`.

An archive is an OCI image layout (image-spec image-layout.md) in a tar, and also contains the manifest.json of `docker
save` with the same blobs. Nothing is pulled, and the same files give the same digests.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.bundles import make_rootfs
from tests.support.programs import compiled

#: Waits for a signal to stop, and collects orphans, as a pod's first process must.
_PAUSE = """
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void stop(int number) { (void)number; _exit(0); }
static void collect(int number) { (void)number; while (waitpid(-1, NULL, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, stop); signal(SIGTERM, stop); signal(SIGCHLD, collect);
  for (;;) pause();
}
"""
_OCI = "application/vnd.oci.image"


@dataclass(frozen=True)
class Image:
    """An image and its program. Its name has a registry and a tag, since engines complete names that lack them."""

    name: str
    argv: tuple[str, ...] = ("/bin/sh",)
    env: tuple[str, ...] = ("PATH=/bin:/usr/bin",)
    cwd: str = "/"
    user: str = ""


BUSYBOX_IMAGE = Image("docker.io/hawse/busybox:1")
#: Like registry.k8s.io/pause: one program, no other file or directory, a user other than root.
PAUSE_IMAGE = Image("docker.io/hawse/pause:1", argv=("/pause",), user="65535:65535")


def write_busybox(path: str) -> str:
    """Write an archive with busybox; returns its path."""
    with tempfile.TemporaryDirectory() as directory:
        make_rootfs(f"{directory}/rootfs")
        return write_archive(path, [BUSYBOX_IMAGE], f"{directory}/rootfs")


def pause_program() -> str:
    """Compile the pause program; returns its path."""
    return compiled(_PAUSE)


def write_pause(path: str) -> str:
    """Write an archive with a program for a pod's first container; returns its path."""
    with tempfile.TemporaryDirectory() as directory:
        os.mkdir(f"{directory}/rootfs")
        shutil.copy(pause_program(), f"{directory}/rootfs/pause")
        return write_archive(path, [PAUSE_IMAGE], f"{directory}/rootfs")


def write_archive(path: str, images: Sequence[Image], rootfs: str) -> str:
    """Write an archive with these images, which share the root file system in that directory; returns its path."""
    layer = _layer(rootfs)
    blobs = {_digest(layer): layer}
    index, saved = [], []
    for image in images:
        config = _json(_config(image, _digest(layer)))
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_OCI}.manifest.v1+json",
                "config": _descriptor(config, "config.v1+json"),
                "layers": [_descriptor(layer, "layer.v1.tar")],
            }
        )
        blobs |= {_digest(data): data for data in (config, manifest)}
        # containerd uses the first annotation, other engines use the second (image-spec annotations.md).
        names = {"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name}
        index.append({**_descriptor(manifest, "manifest.v1+json"), "annotations": names})
        saved.append({"Config": _blob(config), "RepoTags": [image.name], "Layers": [_blob(layer)]})
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": index}),
        "manifest.json": _json(saved),
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in {**files, **{_blob(data): data for data in blobs.values()}}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return path


def _config(image: Image, layer: str) -> dict[str, Any]:
    """The image configuration (image-spec config.md)."""
    process = {"Env": list(image.env), "Cmd": list(image.argv), "WorkingDir": image.cwd, "User": image.user}
    return {
        "created": "1970-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": process,
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tests"}],
    }


def _layer(rootfs: str) -> bytes:
    """The directory as a tar: sorted, owned by root, with time 0."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(os.listdir(rootfs)):
            archive.add(f"{rootfs}/{name}", name, filter=_plain)
    return data.getvalue()


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def _descriptor(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": f"{_OCI}.{kind}", "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _blob(data: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
