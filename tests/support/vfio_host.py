"""A host with functions to bind to VFIO: a fake sysfs and a fake kernel."""

from __future__ import annotations

from hawse.vfio import sysfs
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind.bind import bind, restore_drivers
from hawse.vfio.bind.records import Record
from tests.support.kernel import FakeKernel
from tests.support.sysfs import FakeSysfs

A, B, C = "0000:3b:00.0", "0000:3b:00.1", "0000:3c:00.0"


class Host(FakeSysfs):
    """Two NICs behind a bridge in group 12, and a third NIC in group 13; vfio-pci is loaded."""

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
        """Call :func:`bind` with a short timeout."""
        return bind(
            addresses, directory=self.directory, owner=owner, driver=driver, with_group=group, root=self.root,
            owner_lives=lambda _owner: lives, effects=self.kernel.effects, seconds=0.2,
        )  # fmt: skip

    def restore_drivers(self, *records: Record) -> None:
        """Call :func:`hawse.vfio.bind.bind.restore_drivers` with a short timeout."""
        restore_drivers(records, directory=self.directory, root=self.root, effects=self.kernel.effects, seconds=0.2)

    def state(self) -> dict[str, tuple[str, str]]:
        """The driver and the override of each function."""
        return {
            name: (sysfs.driver(name, root=self.root), self.read(name, "driver_override").strip()) for name in (A, B, C)
        }

    def records(self) -> list[Record]:
        """All valid records on disk."""
        return bindings.read_all(self.directory)[0]


BEFORE = {A: ("e1000e", "(null)"), B: ("igb", "(null)"), C: ("e1000e", "(null)")}
