"""The completion of an upload, while another request or the clock ends it."""

import asyncio

import pytest
from support.waiting import WAIT_SECONDS_MAX

from tidemill.api.batches import file_removal
from tidemill.runtime.clocks import DOUBT_SECONDS
from tidemill.schemas import ids
from tidemill.schemas.log import topics
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.file import UPLOAD_LIFE_SECONDS

LINE = b'{"custom_id":"a"}\n'


class Gate:
    """Holds each read of a part, unless it is open, until the test lets it go on; before or after its bytes."""

    def __init__(self, deps, monkeypatch) -> None:
        self._read = deps.store.read
        self._held: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self.is_open = True
        self.is_late = False
        """Whether it holds a read after its bytes."""
        monkeypatch.setattr(deps.store, "read", self._gated)

    async def _gated(self, key, *args):
        is_part = key.startswith("uploads/")
        if is_part and not self.is_late:
            await self._pass()
        async for chunk in self._read(key, *args):
            yield chunk
        if is_part and self.is_late:
            await self._pass()

    async def _pass(self) -> None:
        if not self.is_open:
            go_on = asyncio.Event()
            self._held.put_nowait(go_on)
            await go_on.wait()

    async def held(self) -> asyncio.Event:
        """What the next read waits for."""
        return await asyncio.wait_for(self._held.get(), WAIT_SECONDS_MAX)

    async def held_with_all(self) -> asyncio.Event:
        """What a completion waits for that has read both parts."""
        self.is_late = True
        (await self.held()).set()
        return await self.held()


@pytest.fixture
def gate(deps, monkeypatch):
    """A gate before the parts; closed when the upload has its parts."""
    return Gate(deps, monkeypatch)


@pytest.fixture
async def begun(client, gate):
    """The path of an upload of two lines, and the ids of its two parts."""
    wish = {"filename": "f", "purpose": "batch", "bytes": 2 * len(LINE), "mime_type": "text/jsonl"}
    path = f"/uploads/{(await client.post('/uploads', json=wish)).json()['id']}"
    made = [(await client.post(f"{path}/parts", files={"data": LINE})).json()["id"] for _ in range(2)]
    gate.is_open = False
    return path, made


def complete(client, begun, *, backwards: bool = False) -> asyncio.Task:
    """A running completion."""
    path, part_ids = begun
    wanted = part_ids[::-1] if backwards else part_ids
    return asyncio.create_task(client.post(f"{path}/complete", json={"part_ids": wanted}))


async def stored(deps, prefix="files/") -> set[str]:
    """The keys of all files, or of other objects."""
    return {key async for key in deps.store.keys(prefix)}


def key_of(begun, *, backwards: bool = False) -> str:
    """The key of the file that a completion makes."""
    path, part_ids = begun
    wanted = part_ids[::-1] if backwards else part_ids
    return file_key(ids.owned_file_id(ids.derived_file_id(path.split("/")[2], "/".join(wanted)), "p"))


async def test_a_repetition_whose_parts_are_swept_gets_the_same_answer(deps, client, gate, begun):
    """The first completion ends while the second assembles, and the sweep deletes the parts."""
    first, second = complete(client, begun), complete(client, begun)
    one, other = await gate.held(), await gate.held()
    gate.is_open = True
    one.set()
    done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_SECONDS_MAX)
    await file_removal.sweep(deps)
    other.set()
    answers = [(await each).raise_for_status().json() for each in (first, second)]
    assert len(done) == 1
    assert answers[0] == answers[1]
    assert await stored(deps) == {key_of(begun)}


async def test_an_upload_may_expire_while_it_is_assembled(deps, client, gate, begun, clock):
    """It was complete in time."""
    running = complete(client, begun)
    held = await gate.held()
    clock.now += UPLOAD_LIFE_SECONDS + 1
    gate.is_open = True
    held.set()
    answer = (await running).raise_for_status().json()
    assert answer["status"] == "completed"
    upload_id = begun[0].split("/")[2]
    assert deps.view.uploads.upload("p", upload_id).upload.status == "completed"
    content = await client.get(f"/files/{answer['file']['id']}/content")
    assert content.content == 2 * LINE


@pytest.mark.parametrize("is_read", [False, True])
async def test_nothing_is_left_of_an_upload_that_is_cancelled_meanwhile(deps, client, gate, begun, is_read):
    """No quota would count its bytes. Its parts are deleted before or after they are read."""
    running = complete(client, begun)
    held = await (gate.held_with_all() if is_read else gate.held())
    (await client.post(f"{begun[0]}/cancel")).raise_for_status()
    gate.is_open = True
    held.set()
    answer = await running
    assert (answer.status_code, "'cancelled'" in answer.text) == (400, True)
    assert await stored(deps) == set()


@pytest.mark.parametrize("is_read", [False, True])
async def test_only_the_completion_that_won_leaves_a_file(deps, client, gate, begun, is_read):
    """The other has the parts in another order, and reads them before or after they are deleted."""
    loser = complete(client, begun, backwards=True)
    held = await (gate.held_with_all() if is_read else gate.held())
    gate.is_open = True
    won = (await complete(client, begun)).raise_for_status().json()
    held.set()
    answer = await loser
    assert (answer.status_code, "'completed'" in answer.text) == (400, True)
    assert await stored(deps) == {key_of(begun)} == {file_key(won["file"]["id"])}


async def test_a_file_that_is_being_published_is_not_deleted(deps, client, gate, begun, monkeypatch):
    """Its upload is cancelled before its record is in the log, and a repetition sees that."""
    send, held_send, go_on = deps.log.send, asyncio.Event(), asyncio.Event()

    async def held_back(topic, key, value, *, headers=()):
        if topic == topics.FILES.name:
            held_send.set()
            await go_on.wait()
        return await send(topic, key, value, headers=headers)

    monkeypatch.setattr(deps.log, "send", held_back)
    first, second = complete(client, begun), complete(client, begun)
    one, other = await gate.held(), await gate.held()
    gate.is_open = True
    one.set()
    await asyncio.wait_for(held_send.wait(), WAIT_SECONDS_MAX)
    (await client.post(f"{begun[0]}/cancel")).raise_for_status()
    other.set()
    await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED, timeout=0.5)
    go_on.set()
    await asyncio.gather(first, second)
    assert await stored(deps) == {key_of(begun)}


async def test_a_store_that_fails_leaves_the_loser_to_the_search_for_orphans(
    deps, client, gate, begun, monkeypatch
):
    """The answer is still that the upload is over."""

    async def failing(_key):
        raise OSError("away")

    running = complete(client, begun)
    held = await gate.held_with_all()
    (await client.post(f"{begun[0]}/cancel")).raise_for_status()
    monkeypatch.setattr(deps.store, "delete", failing)
    gate.is_open = True
    held.set()
    assert (await running).status_code == 400
    assert await stored(deps) == {key_of(begun)}


async def test_no_part_goes_by_a_clock_in_doubt(deps, client, begun, clock):
    """An upload that seems to be over keeps its parts and its record."""
    now = 0.0
    rounds = file_removal.Sweeps(deps, lambda: now)
    clock.now += 30 * 86_400
    await rounds.round()
    assert len(await stored(deps, "uploads/")) == 2
    assert (await client.post(f"{begun[0]}/cancel")).status_code == 400  # it has expired
    now += DOUBT_SECONDS
    clock.now += DOUBT_SECONDS
    await rounds.round()
    assert not await stored(deps, "uploads/")
    assert (await client.post(f"{begun[0]}/cancel")).status_code == 404
