"""Detection of an outdated guest image, by its age and by apt's package lists."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from hawse.config import Config, ImageFiles
from hawse.doctor import requirements
from hawse.doctor.check import OK, WARNING
from hawse.vm.image import store
from tests.support.ready import make_image, make_program

OURS, NEWER = "6.1.140-1", "6.1.153-1"
DAY = 24 * 3600
REMEDY = "`apt-get update`, then `hawse image build`; running containers keep the old image"


class Host:
    """A host with an image that contains the kernel ``OURS``, and with a fake apt-cache."""

    def __init__(self, directory: Path) -> None:
        self.path = make_image(f"{directory}/cache")
        with open(f"{self.path}/manifest.json") as file:
            manifest = json.load(file)
        manifest["packages"] = {"crun": "1.8.1-1", "linux-image-6.1.0-37-amd64": OURS}
        with open(f"{self.path}/manifest.json", "w") as file:
            json.dump(manifest, file)
        self.files = ImageFiles(cache=f"{directory}/cache")
        self.program = f"{directory}/bin/apt-cache"
        os.mkdir(f"{directory}/bin")
        self.knows(OURS)

    def knows(self, version: str) -> None:
        """Put a version of the kernel into apt's lists."""
        lines = (
            f"Package: linux-image-amd64\\nVersion: {version}\\nDepends: x, linux-image-6.1.0-40-amd64 (= {version})"
        )
        make_program(self.program, f'test "$*" = "show --no-all-versions linux-image-amd64" && printf "{lines}\\n"')

    def look(self) -> tuple[str, str, str]:
        finding = requirements.guest_image(Config(image=self.files))
        return finding.verdict, finding.found, finding.remedy

    def age(self, days: float) -> None:
        """Set the age of the image."""
        then = time.time() - days * DAY
        os.utime(store.current_path(self.files.cache), (then, then))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return Host(tmp_path)


@pytest.mark.parametrize(("days", "words"), [(0, ""), (29.9, ""), (31.5, "31 days"), (400.5, "400 days")])
def test_image_older_than_a_month_is_a_warning_with_the_remedy(host: Host, days: float, words: str) -> None:
    host.age(days)
    if not words:
        assert host.look() == (OK, host.path, "")
        return
    assert host.look() == (WARNING, f"{host.path}: it lacks the updates of the last {words}", REMEDY)


def test_newer_kernel_in_the_package_lists_is_a_warning(host: Host) -> None:
    host.knows(NEWER)
    assert host.look() == (WARNING, f"{host.path}: it lacks the kernel {NEWER} in apt's package lists", REMEDY)
    host.knows("6.1.9-1")
    assert host.look() == (OK, host.path, "")


@pytest.mark.parametrize("script", ["exit 100", "echo N: Unable to locate package", "printf 'Depends: x\\n'"])
def test_image_is_judged_by_its_age_without_package_lists(
    host: Host, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_program(host.program, script)
    assert host.look()[0] == OK
    os.unlink(host.program)
    monkeypatch.setenv("PATH", os.path.dirname(host.program))
    assert host.look()[0] == OK


def test_image_with_a_custom_kernel_is_judged_by_its_age(host: Host, tmp_path: Path) -> None:
    host.knows(NEWER)
    (tmp_path / "vmlinux").touch()
    host.files = ImageFiles(cache=host.files.cache, kernel=f"{tmp_path}/vmlinux", modules=str(tmp_path))
    kept = store.current_path(host.files.cache, host.files.kernel, host.files.modules)
    Path(kept).write_text("d1")
    with open(f"{host.path}/manifest.json") as file:
        manifest = json.load(file)
    manifest["sources"] = store.sources_digest(host.files.kernel, host.files.modules)
    Path(host.path, "manifest.json").write_text(json.dumps(manifest))
    assert host.look()[0] == OK
