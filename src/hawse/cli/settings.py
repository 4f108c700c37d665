"""The parsed global options, and objects that are created from them on demand."""

from __future__ import annotations

from hawse.errors import ConfigError
from hawse.log import Log
from hawse.state.store import DEFAULT_ROOT, Store

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.config import Config


class Settings:
    """The settings that every verb receives in addition to its arguments."""

    def __init__(
        self, *, root: str | None, log: Log, config_path: str | None, debug: bool, systemd_cgroup: bool = False
    ) -> None:
        self.root = root or DEFAULT_ROOT
        self.log = log
        self.debug = debug
        self.systemd_cgroup = systemd_cgroup
        self.config_path = config_path
        self._config: Config | None = None

    @property
    def config(self) -> Config:
        """The configuration, read on demand, since hot verbs do not need it. Raises ConfigError."""
        if self._config is None:
            from hawse.config import DEFAULT_PATH, load_config
            from hawse.vfio.emulated import read_table

            config = load_config(self.config_path)
            try:
                read_table(config.emulated)
            except ConfigError as error:
                name = f"configuration {self.config_path or DEFAULT_PATH}:"
                raise error.with_context(message=error.message.replace("configuration:", name, 1)) from None
            self._config = config
        return self._config

    def store(self, name: str) -> Store:
        """The state directory of the container with this id. Raises UsageError for an invalid id."""
        return Store(self.root, name)
