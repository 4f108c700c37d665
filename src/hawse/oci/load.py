"""Read and check config.json and process.json, up to a size limit. Every error names the file, field and remedy."""

from __future__ import annotations

import json
import os
import posixpath
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from hawse.errors import ConfigError
from hawse.json_text import Document, parse
from hawse.oci.capabilities import unknown
from hawse.oci.checks import check_linux, check_rlimits
from hawse.oci.fields import review_process
from hawse.oci.lenient import completed
from hawse.oci.seccomp_checks import is_empty
from hawse.oci.types import Process, Spec, convert

MAX_BYTES = 4 * 1024 * 1024
_VERSION = re.compile(r"1\.\d{1,4}\.\d{1,4}(-[0-9A-Za-z.+-]+)?(\+[0-9A-Za-z.-]+)?")


@dataclass(frozen=True)
class Bundle:
    """A bundle: its absolute path, the document in the form that hawse reads (:mod:`hawse.oci.lenient`), the document
    as checked objects, the absolute path of the root file system, and warnings."""

    path: str
    raw: Document
    spec: Spec
    process: Process
    rootfs: str
    warnings: tuple[str, ...] = ()


def load_bundle(path: str) -> Bundle:
    """Read ``path``/config.json. Raises :class:`ConfigError`."""
    bundle = os.path.abspath(path)
    if not os.path.isdir(bundle):
        raise ConfigError(f"bundle {bundle}: no such directory", hint="give the bundle with --bundle")
    name = f"{bundle}/config.json"
    raw, warnings = _read(name, Spec, hint="create one with `hawse spec`")
    _clean_paths(raw)
    spec: Spec = _check(name, raw, Spec)
    if not _VERSION.fullmatch(spec.oci_version):
        raise ConfigError(
            f"{name}: ociVersion: unknown version {spec.oci_version[:40]!r}", hint="hawse supports versions 1.x.y"
        )
    if spec.root is None:
        raise ConfigError(f"{name}: root: missing", hint="root.path names the container's root file system")
    if spec.process is None:
        raise ConfigError(f"{name}: process: missing", hint="process defines what the container runs")
    _check_process(name, "process.", spec.process)
    rootfs = os.path.normpath(os.path.join(bundle, spec.root.path))
    if not os.path.isdir(rootfs):
        raise ConfigError(f"{name}: root.path: {rootfs} is not a directory", hint="unpack the container's files there")
    _check_paths(name, spec)
    warnings += check_linux(name, spec)
    if spec.process.capabilities:
        warnings += unknown(msgspec.structs.asdict(spec.process.capabilities))
    if spec.linux and spec.linux.seccomp and is_empty(spec.linux.seccomp):
        del raw["linux"]["seccomp"]
    return Bundle(bundle, raw, spec, spec.process, rootfs, tuple(warnings))


def load_process(path: str) -> tuple[Document, Process]:
    """Read the file of ``exec --process``, without ignored fields. Raises :class:`ConfigError`."""
    raw, _ = _read(path, Process, hint="--process names a file with one JSON object")
    process: Process = _check(path, raw, Process)
    _check_process(path, "", process)
    reviewed, _ = review_process(path, raw)
    return reviewed, process


def _read(name: str, kind: type[Any], *, hint: str) -> tuple[Document, list[str]]:
    try:
        with open(name, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: {(error.strerror or str(error)).lower()}", hint=hint) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: larger than {MAX_BYTES // 1024 // 1024} MiB", hint="this is not a specification")
    try:
        raw = parse(data)
        if isinstance(raw, dict):
            return completed(raw, kind)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{name}: not JSON: {error.msg} in line {error.lineno}, column {error.colno}", hint="correct it there"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not JSON: {error}", hint="it must be UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {error}", hint="see the OCI runtime specification, config.md") from None
    raise ConfigError(f"{name}: not a JSON object", hint="see the OCI runtime specification, config.md")


def _clean_paths(raw: Document) -> None:
    """Remove "." and ".." from the paths of devices, in place: hawse recognizes some devices by their paths."""
    linux = raw.get("linux")
    devices = linux.get("devices") if isinstance(linux, dict) else None
    for device in devices if isinstance(devices, list) else ():
        path = device.get("path") if isinstance(device, dict) else None
        if isinstance(path, str) and path.startswith("/"):
            device["path"] = "/" + posixpath.normpath(path).lstrip("/")


def _check(name: str, raw: Document, kind: type[Any]) -> Any:
    try:
        return convert(raw, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        field = where.rstrip("`").lstrip(".")
        missing = re.fullmatch(r"Object missing required field `(\w+)`", what)
        if missing:
            field = f"{field}.{missing[1]}".lstrip(".")
            what = "missing"
        raise ConfigError(
            f"{name}: {field or 'document'}: {what[0].lower()}{what[1:].replace('`', '')}",
            hint="see the OCI runtime specification, config.md",
        ) from None


def _check_process(name: str, prefix: str, process: Process) -> None:
    if not process.args or not process.args[0]:
        raise ConfigError(f"{name}: {prefix}args: empty", hint="args[0] is the program")
    if not process.cwd.startswith("/"):
        raise ConfigError(f"{name}: {prefix}cwd: {process.cwd!r} is not absolute", hint="begin it with /")
    if process.oom_score_adj is not None and not -1000 <= process.oom_score_adj <= 1000:
        raise ConfigError(f"{name}: {prefix}oomScoreAdj: {process.oom_score_adj} is not between -1000 and 1000",
                          hint="see proc(5)")  # fmt: skip
    check_rlimits(name, prefix, process.rlimits)


def _check_paths(name: str, spec: Spec) -> None:
    for index, mount in enumerate(spec.mounts or ()):
        if not mount.destination:
            raise ConfigError(f"{name}: mounts[{index}].destination: empty", hint="it is a path in the container")
    for index, device in enumerate(spec.linux.devices or () if spec.linux else ()):
        if not device.path:
            raise ConfigError(f"{name}: linux.devices[{index}].path: empty", hint="it is a path in the container")
        if device.type not in ("c", "b", "u", "p"):
            raise ConfigError(
                f"{name}: linux.devices[{index}].type: {device.type!r} is not c, b, u or p", hint="VFIO devices are c"
            )
