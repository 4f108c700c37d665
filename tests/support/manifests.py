"""Kubernetes manifests: parsed as YAML, and translated for an engine as a kubelet and a device plugin
translate them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hawse.vm.image import packages
from tests.support.caches import CACHE, kept

DEPLOY = Path(__file__).parents[2] / "deploy" / "kubernetes"
#: Microseconds (Kubernetes pkg/kubelet/cm/helpers_linux.go, QuotaPeriod).
_PERIOD = 100_000
_UNITS = {"m": 0.001, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
#: Page sizes of the node: a kubelet sends a limit of zero for each size that is not requested
#: (pkg/kubelet/kuberuntime/kuberuntime_container_linux.go, GetHugepageLimitsFromResources).
_PAGES = {"hugepages-2Mi": "2MB", "hugepages-1Gi": "1GB"}


def yaml_library() -> str:
    """The directory of Debian's PyYAML, which is fetched once and kept in the cache."""

    def unpack(tree: str) -> None:
        fetched = packages.fetch(["python3-yaml"], cache=CACHE, progress=print)
        packages.unpack(fetched, tree, select=lambda name: name.startswith("usr/lib/python3/dist-packages/yaml"))

    return f"{kept('yaml', unpack)}/usr/lib/python3/dist-packages"


def read(path: Path) -> list[dict[str, Any]]:
    """Parse the documents of a file with PyYAML: none of the engines here reads all of them."""
    library = yaml_library()
    script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
    done = subprocess.run(
        [sys.executable, "-c", script], input=path.read_text(), env=os.environ | {"PYTHONPATH": library},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{path}: {done.stderr}"
    documents: list[dict[str, Any]] = json.loads(done.stdout)
    return documents


def read_one(name: str) -> dict[str, Any]:
    """The only document of a file in deploy/kubernetes."""
    [document] = read(DEPLOY / name)
    return document


def runtime_class(pod: dict[str, Any]) -> dict[str, Any]:
    """The RuntimeClass of a pod, from deploy/kubernetes."""
    classes = [read_one(path.name) for path in DEPLOY.glob("runtimeclass*.yaml")]
    [one] = [each for each in classes if each["metadata"]["name"] == pod["spec"]["runtimeClassName"]]
    return one


def quantity(text: str) -> float:
    """A number of bytes or of CPUs (k8s.io/apimachinery pkg/api/resource); supports the units that are used here."""
    number = text.rstrip("kmKMGi")
    return float(number) * (_UNITS[text[len(number) :]] if text != number else 1)


def resources(limits: dict[str, str]) -> dict[str, Any]:
    """The limits of a container as a kubelet sends them."""
    cpus = quantity(limits["cpu"])
    return {
        "cpu_period": _PERIOD,
        "cpu_quota": int(cpus * _PERIOD),
        "cpu_shares": int(cpus * 1024),
        "memory_limit_in_bytes": int(quantity(limits["memory"])),
        "hugepage_limits": [
            {"page_size": size, "limit": int(quantity(limits.get(name, "0")))} for name, size in _PAGES.items()
        ],
    }


def sandbox(pod: dict[str, Any], runtime_class: dict[str, Any]) -> dict[str, Any]:
    """The values that a kubelet sends for the whole pod: its overhead, and the sum of its containers' limits."""
    limits = [resources(container["resources"]["limits"]) for container in pod["spec"]["containers"]]
    summed = {key: sum(limit[key] for limit in limits) for key in ("cpu_quota", "cpu_shares", "memory_limit_in_bytes")}
    overhead = resources(runtime_class["overhead"]["podFixed"])
    return {"overhead": overhead, "resources": summed | {"cpu_period": _PERIOD}}


def plugins_variables(resource: str, functions: dict[str, int]) -> list[dict[str, str]]:
    """The environment variables that the SR-IOV network device plugin sets for a container's functions: addresses and
    groups (pkg/resources/server.go, getEnvs(); pkg/infoprovider/vfioInfoProvider.go)."""
    name = "PCIDEVICE_" + "".join(letter if letter.isalnum() else "_" for letter in resource.upper())
    info = {
        address: {
            "generic": {"deviceID": address},
            "vfio": {"dev-mount": f"/dev/vfio/{group}", "mount": "/dev/vfio/vfio"},
        }
        for address, group in functions.items()
    }
    return [
        {"key": name, "value": ",".join(functions)},
        {"key": f"{name}_INFO", "value": json.dumps(info)},
    ]


def asked_for(pod: dict[str, Any]) -> tuple[str, int]:
    """The only plugin resource that a pod requests, and its number."""
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    [(name, count)] = [(name, count) for name, count in limits.items() if "/" in name]
    return name, int(count)
