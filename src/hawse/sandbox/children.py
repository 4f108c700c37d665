"""Programs that a sandbox runs: QEMU and virtiofsd. Each dies with the monitor and is ended softly, then hard."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from hawse.errors import HostError, VmError
from hawse.sandbox.evidence import BoundedLog, collect
from hawse.sandbox.share import die_with_parent

_SOFT_SECONDS = 3.0


class Child:
    """A running program and what it wrote to stderr."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, log: BoundedLog, reading: asyncio.Task[None]
    ) -> None:
        self.name = name
        self.process = process
        self._log = log
        self._reading = reading

    async def death(self) -> VmError:
        """Wait for the program's end; the error that tells of it, with its stderr as evidence."""
        code = await self.process.wait()
        await self._reading
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return VmError(f"{self.name} {how}", hint="its last words follow", evidence=self._log.tail())


@asynccontextmanager
async def running(
    name: str, argv: Sequence[str], *, log: str, descriptors: Sequence[int] = (), lock_memory: bool = False
) -> AsyncIterator[Child]:
    """Run a program for the length of the context. Raises :class:`HostError` when it cannot be executed.

    ``lock_memory`` lifts RLIMIT_MEMLOCK where this process may: VFIO accounts every mapping of a guest against it.
    """

    def prepare() -> None:
        die_with_parent()
        if lock_memory:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
            preexec_fn=prepare,
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(
            f"cannot run {name}: {argv[0]}: {error.strerror}", hint="install it, or name it in the configuration"
        ) from None
    assert process.stderr is not None
    output = BoundedLog(log)
    reading = asyncio.create_task(collect(process.stderr, output))
    try:
        yield Child(name, process, output, reading)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_SOFT_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        reading.cancel()
        output.close()
