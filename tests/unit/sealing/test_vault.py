"""Keys that cannot be created or read, and when keys are destroyed."""

import pytest
from support.secrets_topic import Topic

from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import Erasure, Secret
from tidemill.sealing.vault import NoKey, Vault
from tidemill.sealing.wrapping import FileWrapper, new_key_text

A, B = (f"batch_{letter * 32}" for letter in "ab")


def is_over(_):
    """Every batch."""
    return True


class Away:
    """A log that does not answer."""

    async def send(self, *_, **__):
        """Fail."""
        raise LogUnavailable


@pytest.fixture
def keys(tmp_path):
    """A file with one key."""
    (tmp_path / "keys").write_text(new_key_text())
    return FileWrapper(tmp_path / "keys")


@pytest.fixture
def vault(keys):
    """One that cannot send."""
    return Vault(Away(), wrapper=keys, seals=True)


async def test_nothing_stays_of_a_key_that_could_not_be_created(vault):
    """The next attempt starts anew."""
    with pytest.raises(LogUnavailable):
        await vault.sealing_cipher(A, "p")
    assert not vault._creating


@pytest.mark.parametrize("wrapped", ["é", "a", "!", ""])
async def test_a_key_that_is_not_in_base64_is_no_key(vault, wrapped):
    """`é` included, for which the decoder raises another error."""
    name, _ = await vault._wrapper.wrap("p", "place", b"key")
    vault.apply(f"{A}/x", codec.encode(Secret(project="p", at=1, wrapped_by=name, wrapped=wrapped)))
    with pytest.raises(NoKey):
        await vault.cipher(A, "x")


async def test_all_keys_of_a_deleted_batch_are_destroyed(keys):
    """Also one of a process that does not know of the deletion; and the batch gets no new key."""
    topic = Topic()
    late, results = topic.vault(keys), topic.vault(keys)
    cipher = await late.sealing_cipher(A, "p")
    topic.records.append((A, codec.encode(Erasure(project="p", at=100))))
    topic.records.append((f"{A}/0011223344556677", topic.records[0][1]))
    await results._caught_up()
    with pytest.raises(NoKey):
        await results.cipher(A, cipher.key_id)
    with pytest.raises(NoKey):
        await results.sealing_cipher(A, "p")
    await results.destroy_due_keys(50, is_over)
    assert sorted(key for key, value in topic.records if value is None) == sorted(
        f"{A}/{key_id}" for key_id in (cipher.key_id, "0011223344556677")
    )
    assert results.is_erased(A)
    await results.destroy_due_keys(200, is_over)
    assert (topic.records[-1], results.is_erased(A)) == ((A, None), False)


async def test_old_keys_are_destroyed(keys):
    """Once the log has no record that they open."""
    topic = Topic()
    vault = topic.vault(keys)
    await vault.sealing_cipher(A, "p")
    await vault.destroy_due_keys(1, is_over)
    await vault.destroy_due_keys(float("-inf"), is_over)
    assert vault.has_key(A)
    await vault.destroy_due_keys(2e9 * 10, is_over)
    assert not vault.has_key(A)


async def test_the_key_of_an_open_batch_is_kept(keys):
    """However old it is: without it, its requests and results could not be read."""
    topic = Topic()
    vault = topic.vault(keys)
    for batch_id in (A, B):
        await vault.sealing_cipher(batch_id, "p")
    await vault.destroy_due_keys(float("inf"), lambda batch_id: batch_id == B)
    assert (vault.has_key(A), vault.has_key(B)) == (True, False)


async def test_a_round_skips_young_keys(keys, monkeypatch):
    """Each deletion causes a round, and there may be a million keys."""
    vault, read = Topic().vault(keys), []
    for batch_id in (A, B):
        await vault.sealing_cipher(batch_id, "p")
    monkeypatch.setattr(
        codec, "decode_secret", lambda value, decode=codec.decode_secret: read.append(1) or decode(value)
    )
    await vault.destroy_due_keys(0.0, is_over)
    assert len(read) == 1
    await vault.destroy_due_keys(float("inf"), is_over)
    assert not vault.has_key(A)
    assert not vault.has_key(B)
