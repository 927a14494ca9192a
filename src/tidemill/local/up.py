"""`tidemill up`: the broker, the stages and, for want of other models, a demo backend; all in one folder."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from tidemill.configuration import signing_keys
from tidemill.configuration.connections import EXPOSED
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.kafka.admin import TopicError, ensure_topics, set_acls
from tidemill.local import cores, data_folder, demo, environment
from tidemill.local.child import ChildError, Program
from tidemill.local.data_folder import FolderError
from tidemill.local.embedded import kraft
from tidemill.local.embedded.broker import Broker, BrokerError
from tidemill.local.supervisor import Supervisor
from tidemill.runtime import preflight
from tidemill.runtime.listening import reachable
from tidemill.runtime.run_file import security
from tidemill.schemas.log.acls import acls
from tidemill.schemas.resources import access
from tidemill.sealing.keeper import KEY_FILE
from tidemill.sealing.wrapping import make_key_file
from tidemill.terminal import say

PROCESSORS = "processors"
STAGES = ("api", "ingest", PROCESSORS, "results")
BATCH_NICENESS = 5
"""Of all stages but the api: on one machine its requests, and the broker that they wait for, go before batches. A
process of this niceness still has a third of the CPU time of one without."""
KAFKA = "kafka"
DEMO = "backend-demo"
AOT_SECONDS_MAX = 6.0
AOT_SECONDS_MIN = 1.0
"""With less time left the broker's start cache is made at another stop."""
FAILED = 1
WRONG = 2
"""Exit code where the operator has to change something first."""


NO_MODEL = """no model is configured. Name your inference server in tidemill.toml:
  [models."qwen3-8b"]
  backends = [{ url = "http://127.0.0.1:8000/v1" }]
and start again. (Two small models for a first try come with the repository: make demo.)"""


class UpError(Exception):
    """It cannot be started; `code` is the exit code."""

    def __init__(self, text: str, *, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


def main(settings: Settings, config: Path | None) -> int:
    """Run everything until a signal comes; returns the exit code.

    Args:
        settings: Those of the command line, the environment and the file.
        config: The file, where one was named.
    """
    if not settings.models and demo.missing():
        _tell(NO_MODEL)
        return WRONG
    # Whatever this process and those that it starts make is their user's alone.
    os.umask(0o077)
    try:
        with data_folder.locked(settings.data.absolute()) as word:
            if word is not None:
                _tell(word)
            asyncio.run(Up(settings, config).run())
    except FolderError as error:
        _tell(str(error))
        return WRONG
    except UpError as error:
        return error.code
    return 0


class Up:
    """One run of everything.

    Args:
        settings: All settings.
        config: The file they are from, where one was named.
    """

    def __init__(self, settings: Settings, config: Path | None) -> None:
        self._settings = settings
        self._data = settings.data.absolute()
        self._config = config
        self._supervisor = Supervisor(tell=_tell, changed=self._write_run)
        self._broker: Broker | None = None
        self._kafka = settings.kafka
        self._api = ""
        self._health: dict[str, str] = {}
        self._secrets: dict[str, dict[str, str]] = {}
        """What some stages are told, and the others are not."""
        self._demo: dict[str, dict[str, Any]] = {}
        """The models of the demo, where they are served."""
        self._is_ready = False
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Start, tell, wait for a signal, stop.

        Raises:
            UpError: It cannot be started, and has said why; nothing is left running.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup a terminal that goes is to be ignored; the two others end it wherever it runs.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal)
        data_folder.remove_run(self._data)
        starting = loop.create_task(self._start())
        asked = loop.create_task(self._stopping.wait())
        try:
            await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await asked
        except UpError as error:
            # Before all is stopped, which may take a while.
            _tell(str(error))
            raise
        finally:
            self._stopping.set()
            starting.cancel()
            await asyncio.gather(starting, asked, return_exceptions=True)
            await self._stop()
        _tell("stopped.")

    def _on_signal(self) -> None:
        if not self._stopping.is_set():
            _tell("stopping; a second time ends everything at once.")
            self._stopping.set()
            return
        self._supervisor.kill()
        data_folder.remove_run(self._data)
        # Whatever this process waits for, nobody wants to wait for it any more.
        os._exit(FAILED)

    async def _start(self) -> None:
        settings = self._settings
        for lack in preflight.misspelt(settings, os.environ):
            _tell(f"warning: {lack}")
        if wrong := [
            *map(str, preflight.keys(settings, os.environ)),
            *filter(None, [preflight.address(settings)]),
        ]:
            raise UpError("\n".join(wrong), code=WRONG)
        port = settings.port or kraft.free_port()
        self._api = f"{settings.scheme}://{reachable(settings.host)}:{port}/v1"
        try:
            shown = self._keep_secrets()
            told = self._told(port)
            below = [self._start_kafka()]
            if not settings.models:
                below.append(self._start_demo(told, other_than=port))
            await _side_by_side(below)
            assert self._kafka is not None
            told["TIDEMILL_KAFKA"] = self._kafka
            await self._supervisor.start([self._stage(*named, told) for named in self._stages()])
        except (BrokerError, ChildError, SettingsError, TopicError) as error:
            raise UpError(str(error)) from error
        self._is_ready = True
        self._write_run()
        if settings.is_exposed:
            _tell(f"warning: {EXPOSED % settings.host}")
        say(f"Tidemill is ready at {self._api} (API key: {shown})")

    def _keep_secrets(self) -> str:
        """Have the keys that nobody has set, and say what is shown of the API key: where it is.

        The key itself is shown once, when it is made. What a start prints goes into logs and journals.
        """
        settings = self._settings
        if settings.encrypt_log and settings.encryption_key_file is None:
            make_key_file(self._data / KEY_FILE)
        shown = "$TIDEMILL_API_KEY"
        if (digest := settings.api_key_digest) is None:
            key, is_new = data_folder.kept_key(self._data)
            digest = access.digest(key)
            shown = key if is_new else f"{access.hint(key)}, in {settings.data / data_folder.API_KEY}"
        takes_keys = settings.kafka is None if settings.intake_api_keys is None else settings.intake_api_keys
        signing = {}
        if settings.signing_key is None and settings.signing_key_file is None:
            file = data_folder.kept_signing_key(self._data)
            signing = {"TIDEMILL_SIGNING_KEY_FILE": str(file)}
            settings = settings.model_copy(update={"signing_key_file": file})
        publics = ",".join(filter(None, (signing_keys.signer(settings).public, settings.verify_keys)))
        known = {"TIDEMILL_API_KEY_SHA256": digest}
        self._secrets = {
            "api": {**signing, **known},
            "ingest": {
                "TIDEMILL_VERIFY_KEYS": publics,
                "TIDEMILL_INTAKE_API_KEYS": str(takes_keys).lower(),
                **(known if takes_keys else {}),
            },
        }
        return shown

    async def _start_kafka(self) -> None:
        """Have a broker, and the topics on it."""
        if self._kafka is None:
            began = time.monotonic()
            broker = Broker(self._data)
            await broker.prepare()
            self._broker = broker
            program = Program(
                name=KAFKA,
                command=broker.command,
                log=broker.output,
                environ=broker.environ,
                folder=broker.folder,
                answers=broker.answers,
                last_words=broker.last_words,
            )
            await self._supervisor.start([program], base=True)
            self._kafka = broker.bootstrap
            _tell(f"Kafka answers at {self._kafka} after {time.monotonic() - began:.1f} s.")
        models = self._settings.models or demo.models("")
        if self._broker is None:
            await ensure_topics(self._settings, self._settings.cluster, models)
            return
        cluster = self._broker.cluster()
        await asyncio.gather(ensure_topics(self._settings, cluster, models), set_acls(cluster, acls()))

    async def _start_demo(self, told: dict[str, str], *, other_than: int) -> None:
        """Have a backend with two small models, since none is configured, and tell the stages of it."""
        port = kraft.free_port(other_than=other_than)
        address = f"http://{kraft.LOOPBACK}:{port}/v1"
        program = self._program(DEMO, [DEMO, "--port", str(port)], environment.plain(os.environ))
        self._demo = demo.models(address)
        told["TIDEMILL_MODELS"] = json.dumps(self._demo)
        await self._supervisor.start([program], base=True)
        _tell(f"no model is configured, so two small ones for a first try are served at {address}.")

    def _told(self, port: int) -> dict[str, str]:
        """What every stage is told; a variable goes before what the file says."""
        told = {
            "TIDEMILL_DATA": str(self._data),
            "TIDEMILL_PORT": str(port),
            # A log is of use while it is being written.
            "PYTHONUNBUFFERED": "1",
        }
        if self._config is not None:
            told["TIDEMILL_CONFIG"] = str(self._config.absolute())
        return told

    def _stages(self) -> list[tuple[str, str]]:
        """Each process of a stage, and which stage it is of; the first one has the stage's name."""
        extra = range(2, 1 + cores.processors(self._settings, cores.available()))
        return [*((stage, stage) for stage in STAGES), *((f"{PROCESSORS}-{n}", PROCESSORS) for n in extra)]

    def _stage(self, name: str, stage: str, told: dict[str, str]) -> Program:
        """A process of a stage, with a port of its own to tell its health on."""
        # The kernel hands out its ports in turn, so it does not give one of a moment ago again.
        port = kraft.free_port()
        self._health[name] = f"http://{kraft.LOOPBACK}:{port}"
        own = {"TIDEMILL_HEALTH_HOST": kraft.LOOPBACK, "TIDEMILL_HEALTH_PORT": str(port)}
        if self._broker is not None:
            own |= security(self._broker.users, stage).environ
        given = environment.of_stage(stage, self._settings, os.environ)
        secrets = self._secrets.get(stage, {})
        return self._program(name, [stage], {**given, **told, **own, **secrets}, stage)

    def _program(
        self, name: str, arguments: list[str], variables: dict[str, str], stage: str | None = None
    ) -> Program:
        command = [sys.executable, "-P", "-m", "tidemill", *arguments]
        return Program(
            name=name,
            stage=stage,
            command=lambda: command,
            log=self._data / "logs" / f"{name}.log",
            environ=variables,
            niceness=0 if stage in {None, "api"} else BATCH_NICENESS,
        )

    def _write_run(self) -> None:
        if not self._is_ready or self._stopping.is_set():
            return
        # A full disk is no reason to end what runs.
        with suppress(OSError):
            data_folder.write_run(
                self._data,
                {
                    "api": self._api,
                    "kafka": self._kafka,
                    "users": str(self._broker.users) if self._broker else None,
                    "models": self._demo,
                    "pid": os.getpid(),
                    "processes": self._supervisor.processes,
                    "health": self._health,
                },
            )

    async def _stop(self) -> None:
        left = await self._supervisor.stop()
        if self._broker is not None and left > AOT_SECONDS_MIN:
            await asyncio.to_thread(self._broker.keep_aot_cache, min(left, AOT_SECONDS_MAX))
        data_folder.remove_run(self._data)


async def _side_by_side(coroutines: list[Coroutine[Any, Any, None]]) -> None:
    """Await all of them; the first error ends the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _tell(line: str) -> None:
    # Nobody may be listening any more.
    with suppress(OSError):
        say(f"tidemill: {line}", err=True)
