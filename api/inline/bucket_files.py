"""Checks the addresses of a create: may the project use them, is the input there, can the folder be written.

An address that the project may not use is refused before any server is asked. The version of the input is fixed
here; ingest copies it later (`ingest/files/imports.py`).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tidemill.api import errors
from tidemill.api.batches import creation
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.batches.creation import Repetition
from tidemill.api.dependencies import Dependencies
from tidemill.api.http import download
from tidemill.api.uploads.first_line import FirstLine
from tidemill.schemas import buckets, fingerprint_of, ids
from tidemill.schemas.bounds import PARAM_CHARS_MAX
from tidemill.schemas.buckets import Address, BucketObject
from tidemill.schemas.log.messages import InputRef
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import NotFound, once
from tidemill.storage.buckets import BucketStore, NotAllowed, Opening, reason
from tidemill.storage.s3_errors import Refused

SECONDS_MAX: Final = 10.0
"""How long a bucket may take for one step of a create."""
FIRST_BYTES: Final = 1 << 20
"""Bytes of an input that a create reads."""
CHECK_NAME: Final = "tidemill-write-check"
"""The object that a create starts to write in a folder as a test, and never completes."""
INPUT: Final = "input_file_id"
OUTPUT: Final = "output_uri"


async def checked(
    deps: Dependencies, project: str, wanted: BatchRequest, repeats: Repetition
) -> tuple[BatchRequest, InputRef | None, str | None]:
    """Check the addresses of a request; their servers are asked only if the batch is new.

    Returns:
        The request with what its input tells, the version of the input, and the fingerprint of the request; the
        last two are None without an input in a bucket, and the version also if the batch is known.

    Raises:
        ApiError: 400, an address cannot be used; 429 or 503, too many are being checked; 503, a server does not
            answer.
    """
    source = None if wanted.input_uri is None else buckets.parse_object(wanted.input_uri)
    folder = None if wanted.output_uri is None else buckets.parse_folder(wanted.output_uri)
    reads = None if source is None else _allowed(deps, project, source, INPUT, writes=False)
    writes = None if folder is None else _allowed(deps, project, folder, OUTPUT, writes=True)
    if wanted.output_format == "parquet":
        download.check_parquet("output_format")
    if source is None:
        if folder is not None and writes is not None:
            async with deps.gates.buckets.turn(project):
                await _check_folder(writes, folder)
        return wanted, None, None
    assert reads is not None
    wanted = wanted.model_copy(update={"name": wanted.name or source.segments[-1]})
    fingerprint = fingerprint_of(wanted.model_dump(exclude={INPUT}))
    if creation.claimed(deps, project, fingerprint, repeats) is not None:
        return wanted, None, fingerprint
    async with deps.gates.buckets.turn(project):
        opening = await _opening(deps, reads, source)
        if folder is not None and writes is not None:
            await _check_folder(writes, folder)
    file_id = ids.new_file_id(project)
    found = BucketObject(uri=str(source), etag=opening.etag, bytes=opening.size)
    ref = InputRef(key=file_key(file_id), bytes=opening.size, source=found)
    update: dict[str, object] = {INPUT: file_id}
    if wanted.dedupe is None:
        update["dedupe"] = await creation.usual_dedupe(deps, once(opening.first))
    return wanted.model_copy(update=update), ref, fingerprint


def _allowed(deps: Dependencies, project: str, address: Address, param: str, *, writes: bool) -> BucketStore:
    try:
        return deps.buckets.find(project, address, writes=writes)
    except NotAllowed as error:
        raise errors.invalid_param(param, str(error), code="uri_not_allowed") from error
    except OSError as error:
        raise errors.unavailable("connection to the bucket") from error


async def _opening(deps: Dependencies, store: BucketStore, source: Address) -> Opening:
    async with _answering(INPUT, source):
        opening = await store.opening(source.key, FIRST_BYTES)
    if opening.size > (most := deps.settings.file_bytes_max):
        why = f"the object has {opening.size} bytes, and an input may have {most}."
        raise errors.invalid_param(INPUT, why, code="object_too_large")
    if len(opening.etag) > PARAM_CHARS_MAX:
        raise errors.invalid_param(INPUT, "its server names versions with too many characters.")
    first = FirstLine()
    first.feed(opening.first)
    is_cut = len(opening.first) < opening.size and not first.is_done
    if not is_cut and (fault := first.fault()) is not None:
        raise errors.invalid(fault, param=INPUT)
    return opening


async def _check_folder(store: BucketStore, folder: Address) -> None:
    async with _answering(OUTPUT, folder):
        await store.check_writable(folder.child(CHECK_NAME).key)


@asynccontextmanager
async def _answering(param: str, address: Address) -> AsyncIterator[None]:
    """Turn what a server answers into an error of the API; each step has `SECONDS_MAX`."""
    try:
        async with asyncio.timeout(SECONDS_MAX):
            yield
    except NotFound as error:
        raise errors.invalid_param(param, f"{address}: {reason(error)}.", code="object_not_found") from error
    except Refused as error:
        raise errors.invalid_param(param, f"{address}: {reason(error)}.", code="bucket_refused") from error
    except OSError as error:
        raise errors.unavailable("bucket's server") from error
