"""Check VFIO groups on the host: whether they can be passed, and what QEMU needs to open them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hawse.errors import DeviceError
from hawse.planner.devices.device_options import VF_TOKEN, DeviceOptions
from hawse.vfio import obstacles, resets
from hawse.vfio.driver_names import is_vfio
from hawse.vfio.groups import Function, HostGroup, check_free, check_viable
from hawse.vfio.host import dma_width, locked_memory
from hawse.vfio.requests import Group
from hawse.vm.qemu_features import Capabilities


def check_host(groups: Sequence[Group], options: DeviceOptions, *, root: str = "") -> list[str]:
    """Check everything on the host that these groups depend on. Returns warnings.

    Raises :class:`DeviceError` naming the group and the function.
    """
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    for group in hosts:
        obstacles.check(group, accepted=options.accepted, root=root)
        obstacles.check_token(group, options.vf_token)
        if to_bind([group], options):
            continue  # these checks are made when the functions are bound
        check_viable(group)
        check_free(group, root=root)
    warnings = [resets.warning(group, root=root) for group in hosts]
    if hosts:
        warnings += [
            locked_memory.warning(*locked_memory.read(), confined=options.confined),
            dma_width.warning(root=root),
        ]
    return [warning for warning in warnings if warning]


def check_tokens(groups: Sequence[Group], options: DeviceOptions, ask: Callable[[], Capabilities]) -> None:
    """Raise :class:`DeviceError` if a function needs a token and QEMU, asked by ``ask``, is older than 8.1."""
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    for function in [function for group in hosts for function in group.functions if token_of(function, options)]:
        can = ask()
        if "vf-token" not in can.vfio_properties:
            raise DeviceError(
                f"{function.address} can be opened only with a token, and QEMU {can.version} does not support tokens",
                hint="use QEMU 8.1 or later: set vm.qemu in the configuration",
            )


def unused_token(groups: Sequence[Group], options: DeviceOptions) -> list[str]:
    """A warning about a token that no function needs."""
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    if not options.vf_token or any(token_of(function, options) for group in hosts for function in group.functions):
        return []
    return [
        f"annotations: {VF_TOKEN} has no effect: no device of the container has a physical function that is bound to "
        "vfio-pci [remove it]"
    ]


def token_of(function: Function, options: DeviceOptions) -> str:
    """The token to open a function, "" for none: the kernel refuses a token that it did not request."""
    return options.vf_token if function.physical_driver == "vfio-pci" else ""


def to_bind(groups: Sequence[Group], options: DeviceOptions) -> list[str]:
    """The functions of these groups that hawse binds to a VFIO driver first; none if ``managed`` is off."""
    if not options.managed:
        return []
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    return [f.address for group in hosts for f in group.functions if not is_vfio(f.driver)]
