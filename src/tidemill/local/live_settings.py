"""Applies the servers and models of the settings file to the catalog: at the start, and when the file changes."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from tidemill.configuration.catalog import SETTINGS_FILE, settings_by_key
from tidemill.configuration.security import Cluster
from tidemill.configuration.servers import Serving
from tidemill.configuration.settings import Settings, SettingsError, file_of, load
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.producer import Log
from tidemill.local.child import Say
from tidemill.retrying import pause_seconds

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
                wanted = settings_by_key(settings.servers, models)
                if await catalog.fill(log, wanted, author=SETTINGS_FILE, again=True) and settings.models:
                    self._say(f"applied the servers and models of {self._config or SETTINGS_FILE}.")
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
        """Apply the file whenever it changes, and try again while Kafka does not answer."""
        failures = 0
        while True:
            await asyncio.sleep(pause_seconds(failures, first=LOOK_SECONDS, longest=RETRY_SECONDS_MAX))
            if (now := _stamp(file_of(self._config))) == self._applied:
                failures = 0
                continue
            try:
                await self.apply(load(self._config), kafka, demo)
            except SettingsError as error:
                self._say(f"warning: not applied: {error}")
            except LogUnavailable as error:
                if not failures:
                    self._say(f"warning: not applied yet: {error}; trying again.")
                failures += 1
                continue
            self._applied, failures = now, 0


_FAILED: Final = "the servers and models cannot be applied"


def _stamp(file: Path) -> tuple[int, int] | None:
    """Changes with the file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
