"""Applies the servers and models of the settings file to the catalog: at the start, and when the file changes.

Other settings take effect at the next start; it names those that have changed.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from tidemill.configuration.catalog import SETTINGS_FILE, Contents, settings_by_key
from tidemill.configuration.security import Cluster
from tidemill.configuration.servers import Serving
from tidemill.configuration.settings import Settings, SettingsError, file_of, load
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.producer import Log
from tidemill.local.child import Say
from tidemill.retrying import pause_seconds
from tidemill.wording import listed

LOOK_SECONDS: Final = 1.0
"""Between two looks at the file."""
RETRY_SECONDS_MAX: Final = 30.0
APPLY_SECONDS_MAX: Final = 60.0


class LiveSettings:
    """The settings file of `tidemill up`; `config` is the one that an option names."""

    def __init__(self, config: Path | None, *, say: Say) -> None:
        self._config = config
        self._say = say
        self._applied = _stamp(file_of(config))
        """The file when its servers and models were last applied, or refused."""
        try:
            self._at_start = load(config)
        except SettingsError:
            self._at_start = Settings()
        self._had_models = bool(self._at_start.models)
        """Whether the file that was applied last has models."""
        self._waiting: list[str] = []
        """Settings that have changed since the start, and take effect at the next one."""

    async def apply(self, settings: Settings, kafka: Cluster, demo: Mapping[str, Any]) -> Serving:
        """Apply servers and models, if they have changed; returns all there are. Without a model `demo` has them.

        Raises:
            SettingsError: The catalog would contradict itself.
            LogUnavailable: Kafka does not answer in time.
        """
        models = settings.models or Settings(models=dict(demo)).models
        catalog, log = Catalog(kafka), Log(kafka)
        try:
            async with asyncio.timeout(APPLY_SECONDS_MAX):
                await catalog.start()
                await catalog.follower.caught_up()
                wanted, before = settings_by_key(settings.servers, models), catalog.contents
                if await catalog.fill(log, wanted, author=SETTINGS_FILE, again=True):
                    of = f"the servers and models of {self._file}" if settings.models else "the demo models"
                    self._say(f"applied {of}{removals(before, catalog.contents)}.")
        except (LogUnavailable, TimeoutError) as error:
            raise LogUnavailable(f"{_FAILED}: {str(error) or 'Kafka does not answer'}") from error
        except ValueError as error:
            raise SettingsError(f"{_FAILED}: {error}") from error
        else:
            return catalog.contents.serving
        finally:
            await catalog.stop()
            await log.stop()

    async def follow(self, kafka: Cluster, demo: Mapping[str, Any]) -> NoReturn:
        """Apply the file whenever it has changed, and try again while Kafka does not answer.

        An editor may empty or rename the file before it writes it, so a change counts once two looks agree.
        """
        failures, seen = 0, self._applied
        while True:
            await asyncio.sleep(pause_seconds(failures, first=LOOK_SECONDS, longest=RETRY_SECONDS_MAX))
            before, seen = seen, _stamp(self._file)
            if seen == self._applied or seen != before:
                failures = 0
                continue
            try:
                settings = self._changed()
                await self.apply(settings, kafka, demo)
            except SettingsError as error:
                self._say(f"warning: not applied: {error}")
            except LogUnavailable as error:
                if not failures:
                    self._say(f"warning: not applied yet: {error}; trying again.")
                failures += 1
                continue
            else:
                self._had_models = bool(settings.models)
                self._say_waiting(settings)
            self._applied, failures = seen, 0

    @property
    def _file(self) -> Path:
        return file_of(self._config)

    def _changed(self) -> Settings:
        """The settings now.

        Raises:
            SettingsError: They are not valid, or the file or all of its models are gone, which is hardly meant.
        """
        settings = load(self._config)
        if not self._file.exists():
            raise SettingsError(f"{self._file} is gone")
        if self._had_models and not settings.models:
            raise SettingsError(f"{self._file} has no models any more")
        return settings

    def _say_waiting(self, settings: Settings) -> None:
        """Name the other settings that have changed, if they are not those of the last message."""
        before, self._waiting = (
            self._waiting,
            [
                name
                for name in Settings.model_fields
                if name not in _LIVE and getattr(settings, name) != getattr(self._at_start, name)
            ],
        )
        if self._waiting and self._waiting != before:
            names = ", ".join(self._waiting)
            self._say(f"warning: these changed settings take effect at the next start of `tidemill up`: {names}.")


_LIVE: Final = {"servers", "models"}
"""Settings that `apply` applies."""
_FAILED: Final = "the servers and models cannot be applied"


def removals(before: Contents, after: Contents) -> str:
    """The servers and models that are gone, as the end of a message; empty if there are none."""
    gone = sorted(before.parsed.keys() - after.parsed.keys())
    return f"; removed {listed(gone)}" if gone else ""


def _stamp(file: Path) -> tuple[int, int] | None:
    """Changes with the file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
