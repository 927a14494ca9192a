"""`tidemill up`: runs the broker, the stages and, without a configured model, a demo backend in one folder."""

import asyncio
import functools
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tidemill.configuration import signing_keys
from tidemill.configuration.connections import EXPOSED
from tidemill.configuration.security import Cluster
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.kafka.admin import TopicError, ensure_topics, once_ready, set_acls
from tidemill.kafka.connection import LogUnavailable
from tidemill.local import data_folder, demo, environment, forks
from tidemill.local.child import ChildError, Program, Start, executed
from tidemill.local.data_folder import FolderError
from tidemill.local.demo import weights
from tidemill.local.demo.weights import WeightsError
from tidemill.local.embedded import kraft
from tidemill.local.embedded.broker import Broker, BrokerError
from tidemill.local.embedded.kraft import PortError
from tidemill.local.fork_server import Request
from tidemill.local.forks import Forks
from tidemill.local.live_settings import LOOK_SECONDS, LiveSettings
from tidemill.local.supervisor import Supervisor
from tidemill.runtime import preflight
from tidemill.runtime.listening import client_host
from tidemill.runtime.run_file import security
from tidemill.schemas.log.acls import STAGES, acls
from tidemill.schemas.resources import access
from tidemill.tasks import run_all
from tidemill.terminal import say

PROCESSORS = "processors"
BATCH_NICENESS = 5
"""Niceness of all stages but the api: on one machine, requests to the api, and the broker that they wait for, take
precedence over batches. A process of this niceness still has a third of the CPU time of one without."""
KAFKA = "kafka"
KAFKA_START_SECONDS_MAX = 900.0
"""After a kill Kafka checks all records that it has before it answers."""
KAFKA_SILENT_SECONDS = 60.0
"""Time after which the operator hears that Kafka still does not answer."""
DEMO = "backend-demo"
AOT_SECONDS_MAX = 20.0
"""Bound of the time to create the broker's start cache; if it takes longer, a later stop tries again."""
FAILED = 1
WRONG = 2
"""Exit code if the operator has to change something first."""
CORES_PER_PROCESS = 2
"""Cores per process of processors: the other stages, the broker and other programs need some, too."""

NO_MODEL = f"""no model is configured. `tidemill init` looks for inference servers and writes tidemill.toml.
For a first try without a server, install two small models: {demo.INSTALL}"""
GONE = """the records in {} were deleted or moved while Tidemill ran; stopping everything.
Put them back before the next start."""


class UpError(Exception):
    """The start failed, or the run cannot go on; `code` is the exit code."""

    def __init__(self, text: str, *, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


_CAUSES = (BrokerError, ChildError, LogUnavailable, PortError, SettingsError, TopicError, WeightsError)
"""Errors of a start whose text says all."""


def main(settings: Settings, config: Path | None) -> int:
    """Run everything until a signal arrives; returns the exit code. `config` is the settings file of an option."""
    if not settings.models and not demo.is_installed():
        _say(NO_MODEL)
        return WRONG
    # Only this user may read the files of this process and its children.
    os.umask(0o077)
    try:
        with data_folder.locked(settings.data.absolute()) as warning:
            if warning is not None:
                _say(warning)
            asyncio.run(Up(settings, config).run())
    except FolderError as error:
        _say(str(error))
        return WRONG
    except UpError as error:
        return error.code
    return 0


class Up:
    """One run of everything; see `main`."""

    def __init__(self, settings: Settings, config: Path | None) -> None:
        self._settings = settings
        self._config = config
        self._supervisor = Supervisor(say=_say, changed=self._write_run)
        log = self._data / "logs" / "fork-server.log"
        self._forks = Forks(environment.fork_server(os.environ), log, say=_say)
        self._broker: Broker | None = None
        self._kafka = settings.kafka
        self._api = ""
        self._health: dict[str, str] = {}
        self._secrets: dict[str, dict[str, str]] = {}
        """Environment variables that only some stages get, by stage."""
        self._demo: dict[str, dict[str, Any]] = {}
        """The demo models, if they are served."""
        self._serving = settings.serving
        """All servers and models, including those that were added while it ran."""
        self._live = LiveSettings(config, say=_say)
        self._is_ready = False
        self._is_interrupted = False
        """Whether Ctrl-C was pressed."""
        self._stopping = asyncio.Event()

    @property
    def _data(self) -> Path:
        return self._settings.data.absolute()

    async def run(self) -> None:
        """Start, report, wait for a signal, stop.

        Raises:
            UpError: The start failed, or the data folder was deleted. The reason is printed, and nothing is left
                running.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup SIGHUP stays ignored.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
        data_folder.remove_run(self._data)
        starting = loop.create_task(self._start())
        asked = loop.create_task(self._stopping.wait())
        try:
            await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                following = loop.create_task(self._follow())
                await asyncio.wait([following, asked], return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    following.result()
                following.cancel()
        except UpError as error:
            # Print this before the stop, which may take a while.
            _say(str(error))
            raise
        finally:
            self._stopping.set()
            starting.cancel()
            await asyncio.gather(starting, asked, return_exceptions=True)
            await self._stop()
        _say("stopped.")

    def _on_signal(self, number: int) -> None:
        # Ctrl-C reaches all processes of the terminal, and a program that started this one may add SIGTERM.
        is_again = number == signal.SIGINT and self._is_interrupted
        self._is_interrupted = self._is_interrupted or number == signal.SIGINT
        if not is_again:
            if not self._stopping.is_set():
                presses = "again" if self._is_interrupted else "twice"
                _say(f"stopping; press Ctrl-C {presses} to kill everything.")
            self._stopping.set()
            return
        self._supervisor.kill()
        data_folder.remove_run(self._data)
        # Exit even if the event loop still waits for something.
        os._exit(FAILED)

    async def _start(self) -> None:
        settings = self._settings
        lacks = (*preflight.unknown(settings), *preflight.lacking(settings.serving))
        for warning in (*lacks, *environment.changed(settings)):
            _say(f"warning: {warning}")
        if wrong := preflight.address_fault(settings):
            raise UpError(wrong, code=WRONG)
        try:
            port = settings.port or kraft.free_port()
            self._api = f"{settings.scheme}://{client_host(settings.host)}:{port}/v1"
            shown = self._keep_secrets()
            data_folder.stamp(self._data)
            variables = self._stage_variables(port)
            base = [self._start_kafka()]
            if forks.ARE_SAFE:
                base.append(self._forks.prepare())
            if not settings.models:
                base.append(self._start_demo(other_than=port))
            await run_all(base)
            assert self._kafka is not None
            variables["TIDEMILL_KAFKA"] = self._kafka
            self._serving = await self._live.apply(settings, self._cluster, self._demo)
            for lack in {*preflight.lacking(self._serving)} - {*preflight.lacking(settings.serving)}:
                _say(f"warning: {lack}")
            await self._supervisor.start([self._stage(*named, variables) for named in self._stages()])
        except _CAUSES as error:
            raise UpError(str(error)) from error
        except (OSError, UnicodeError) as error:
            raise UpError(f"cannot start in {self._data}: {error}", code=WRONG) from error
        self._is_ready = True
        self._write_run()
        if settings.is_exposed:
            _say(f"warning: {EXPOSED % settings.host}")
        say(f"Tidemill is ready at {self._api} (API key: {shown})")

    def _keep_secrets(self) -> str:
        """Create the keys that are not set; returns the text to show for the API key.

        Only a new key itself is shown; later its place is, since the output of `up` ends up in logs.
        """
        settings = self._settings
        if settings.encryption_key_file is None:
            data_folder.keep_encryption_keys(self._data)
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
        publics = ",".join((signing_keys.signer(settings).public, *settings.verify_keys))
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
        """Start the broker unless one is configured, and create the topics."""
        if self._kafka is None:
            began = time.monotonic()
            broker = Broker(self._data)
            await broker.prepare()
            self._broker = broker
            program = Program(
                name=KAFKA,
                start=executed(broker.command, broker.environ, broker.folder),
                log=broker.output,
                answers=broker.answers,
                last_words=broker.last_words,
                last_work=broker.last_work,
                start_seconds_max=KAFKA_START_SECONDS_MAX,
            )
            log = broker.output.with_name("kafka.log")
            still = f"Kafka is still starting; after a crash it checks all of its records. Its log is {log}"
            silent = asyncio.get_running_loop().call_later(KAFKA_SILENT_SECONDS, _say, still)
            try:
                await self._supervisor.start([program], base=True)
            finally:
                silent.cancel()
            self._kafka = broker.bootstrap
            _say(f"Kafka answers at {self._kafka} after {time.monotonic() - began:.1f} s.")
        if self._broker is None:
            await ensure_topics(self._settings, self._cluster)
            return
        # It answers, and may be busy with its recovery.
        await asyncio.gather(
            once_ready(lambda: ensure_topics(self._settings, self._cluster), _say),
            once_ready(lambda: set_acls(self._cluster, acls()), _say),
        )

    async def _follow(self) -> None:
        """Watch the records, and apply servers and models of the settings file whenever it changes; never returns.

        Raises:
            UpError: The data folder was deleted.
        """
        await run_all([self._watch_records(), self._live.follow(self._cluster, self._demo)])

    async def _watch_records(self) -> None:
        while True:
            if self._broker is not None and self._broker.is_gone:
                raise UpError(GONE.format(self._broker.folder))
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def _cluster(self) -> Cluster:
        return self._settings.cluster if self._broker is None else self._broker.cluster()

    async def _start_demo(self, *, other_than: int) -> None:
        """Start a backend with two small models."""
        for package in (weights.EMBEDDING, weights.CHAT):
            await weights.fetch(package)
        port = kraft.free_port(other_than=other_than)
        address = f"http://{kraft.LOOPBACK}:{port}/v1"
        start = executed(lambda: _command(DEMO, "--port", str(port)), environment.plain(os.environ))
        program = self._program(DEMO, start)
        self._demo = demo.models(address)
        await self._supervisor.start([program], base=True)
        _say(f"no model is configured; serving two small demo models at {address}.")

    def _stage_variables(self, port: int) -> dict[str, str]:
        """The variables of every stage; a variable overrides the settings file."""
        variables = {
            "TIDEMILL_DATA": str(self._data),
            "TIDEMILL_PORT": str(port),
        }
        if self._config is not None:
            variables["TIDEMILL_CONFIG"] = str(self._config.absolute())
        return variables

    def _stages(self) -> list[tuple[str, str]]:
        """Names of the processes with their stages; the first process has the name of its stage."""
        extra = range(2, 1 + processor_count(self._settings, available_cores()))
        return [*((stage, stage) for stage in STAGES), *((f"{PROCESSORS}-{n}", PROCESSORS) for n in extra)]

    def _stage(self, name: str, stage: str, variables: dict[str, str]) -> Program:
        """A process of a stage, with its own port for health and metrics."""
        # The kernel assigns ports in turn, so it does not repeat a recent one.
        port = kraft.free_port()
        self._health[name] = f"http://{kraft.LOOPBACK}:{port}"
        own = {"TIDEMILL_HEALTH_HOST": kraft.LOOPBACK, "TIDEMILL_HEALTH_PORT": str(port)}
        if self._broker is not None:
            own |= security(self._broker.users, stage).environ
        keys = {server.api_key_env for server in self._serving.servers.values() if server.api_key_env}
        given = environment.of_stage(stage, self._settings, os.environ, keys)
        secrets = self._secrets.get(stage, {})
        return self._program(name, self._start_of(stage, {**given, **variables, **own, **secrets}), stage)

    def _start_of(self, stage: str, environ: dict[str, str]) -> Start:
        if forks.ARE_SAFE:
            return functools.partial(self._forks.fork, Request(stage, environ))
        # People read logs while the processes write them.
        return executed(lambda: _command(stage), {**environ, "PYTHONUNBUFFERED": "1"})

    def _program(self, name: str, start: Start, stage: str | None = None) -> Program:
        return Program(
            name=name,
            stage=stage,
            start=start,
            log=self._data / "logs" / f"{name}.log",
            niceness=0 if stage in {None, "api"} else BATCH_NICENESS,
            give_up=self._forks.kill if stage in STAGES else lambda: None,
        )

    def _write_run(self) -> None:
        if not self._is_ready or self._stopping.is_set():
            return
        # A full disk must not end the service.
        with suppress(OSError):
            data_folder.write_run(
                self._data,
                {
                    "api": self._api,
                    "kafka": self._kafka,
                    "users": str(self._broker.users) if self._broker else None,
                    "pid": os.getpid(),
                    "processes": self._supervisor.processes,
                    "health": self._health,
                },
            )

    async def _stop(self) -> None:
        await self._supervisor.stop()
        await self._forks.stop()
        if self._broker is not None and self._broker.has_recorded:
            _say("making the start cache of Kafka, so that it starts faster from now on; once per machine.")
            if not await asyncio.to_thread(self._broker.keep_aot_cache, AOT_SECONDS_MAX):
                _say("the start cache is not made; the next stop tries again.")
        data_folder.remove_run(self._data)


def processor_count(settings: Settings, cores: int) -> int:
    """Number of processes of processors: the configured one, else by the cores.

    At most one per partition of a model, since each partition has one consumer.
    """
    return settings.processor_processes or max(1, min(cores // CORES_PER_PROCESS, settings.partitions))


def available_cores() -> int:
    """Cores that this process may use, without the CPU quota of a container."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "tidemill", *arguments]


def _say(line: str) -> None:
    # The terminal may be gone.
    with suppress(OSError):
        say(f"tidemill: {line}", err=True)
