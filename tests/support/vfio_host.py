"""A host with functions to bind: a fake sysfs with a fake kernel."""

from __future__ import annotations

from hawse.vfio import bindings, sysfs
from hawse.vfio.binding import bind, give_back
from hawse.vfio.bindings import Record
from tests.support.kernel import FakeKernel
from tests.support.sysfs import FakeSysfs

A, B, C = "0000:3b:00.0", "0000:3b:00.1", "0000:3c:00.0"


class Host(FakeSysfs):
    """Two NICs in group 12 behind a bridge, a third one in group 13; vfio-pci is loaded."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.function(A, group=12, driver="e1000e")
        self.function(B, group=12, driver="igb")
        self.function("0000:3a:00.0", group=12, driver="pcieport", class_code=0x060400)
        self.function(C, group=13, driver="e1000e")
        self.driver("vfio-pci")
        self.kernel = FakeKernel(root, native={A: "e1000e", B: "igb", C: "e1000e"})
        self.directory = f"{root}/run/hawse.bindings"

    def take(
        self, *addresses: str, owner: str = "", driver: str = "", group: bool = False, lives: bool = True
    ) -> list[Record]:
        """`bind`, with short waits."""
        return bind(
            addresses, directory=self.directory, owner=owner, driver=driver, with_group=group, root=self.root,
            owner_lives=lambda _owner: lives, effects=self.kernel.effects, seconds=0.2,
        )  # fmt: skip

    def give_back(self, *records: Record) -> None:
        """`give_back`, with short waits."""
        give_back(records, directory=self.directory, root=self.root, effects=self.kernel.effects, seconds=0.2)

    def state(self) -> dict[str, tuple[str, str]]:
        """Driver and override of each function."""
        return {
            name: (sysfs.driver(name, root=self.root), self.read(name, "driver_override").strip()) for name in (A, B, C)
        }

    def records(self) -> list[Record]:
        """All valid records on disk."""
        return bindings.read_all(self.directory)[0]


BEFORE = {A: ("e1000e", "(null)"), B: ("igb", "(null)"), C: ("e1000e", "(null)")}
