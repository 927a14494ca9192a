"""The free space on the brokers' disks."""

import asyncio
import functools
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

from tidemill.configuration.security import Kafka, client_options
from tidemill.storage.disk_space import LOG, STORE, DiskSpace, Free

SECONDS_MAX: Final = 15.0


class _LogDirsResponse(Response):  # type: ignore[misc]  # aiokafka is untyped here
    """`DescribeLogDirs`, version 4 (KIP-827): the free bytes of each log folder of a broker."""

    API_KEY = 35
    API_VERSION = 4
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "results",
            CompactArray(
                ("error_code", Int16),
                ("log_dir", CompactString("utf-8")),
                # The request names no partitions, so this array is always empty.
                ("topics", CompactArray(Int32)),
                ("total_bytes", Int64),
                ("usable_bytes", Int64),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _LogDirsStruct(RequestStruct):  # type: ignore[misc]  # aiokafka is untyped here
    FLEXIBLE_VERSION = True
    API_KEY = 35
    API_VERSION = 4
    RESPONSE_TYPE = _LogDirsResponse
    SCHEMA = Schema(("topics", CompactArray(Int32)), ("tags", TaggedFields))


class LogDirsRequest(Request[_LogDirsStruct]):  # type: ignore[misc]  # aiokafka is untyped here
    """Requests the log folders of a broker, without their partitions."""

    API_KEY = 35

    def build(self, request_struct_class: type[_LogDirsStruct]) -> _LogDirsStruct:
        """See `Request`."""
        return request_struct_class([], {})


async def usable_bytes(kafka: Kafka) -> int | None:
    """Free bytes of the brokers' fullest disk; None before Kafka 3.3, which does not report them.

    Raises:
        OSError: A broker does not answer, or refuses the request, which needs DESCRIBE on the cluster.
    """
    admin = AIOKafkaAdminClient(
        **client_options(kafka), client_id="tidemill-disks", request_timeout_ms=int(SECONDS_MAX * 1000)
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await admin.start()
            # aiokafka has no call for this request.
            nodes = [broker.nodeId for broker in admin._client.cluster.brokers()]  # noqa: SLF001
            answers = [await admin._send_request_to_node(node, LogDirsRequest()) for node in nodes]  # noqa: SLF001
    except NotImplementedError:
        return None
    except KafkaError as error:
        raise OSError(type(error).__name__) from error
    finally:
        await admin.close()
    for answer in answers:
        if code := answer.to_object()["error_code"]:
            raise OSError(for_code(code).__name__)
    folders = [folder for answer in answers for folder in answer.to_object()["results"]]
    return min((folder["usable_bytes"] for folder in folders if folder["usable_bytes"] >= 0), default=None)


def log_space(kafka: Kafka, reserve_bytes: int, *, store: Free | None = None) -> DiskSpace:
    """The disk reserve of the log, and of the store if `store` returns its free bytes."""
    disks = {LOG: functools.partial(usable_bytes, kafka)}
    return DiskSpace(reserve_bytes, disks if store is None else {**disks, STORE: store})
