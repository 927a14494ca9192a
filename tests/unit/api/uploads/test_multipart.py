"""A form parses equally in chunks of any size."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.uploads import form_reader, parts
from tidemill.api.uploads.multipart import PARTS_MAX, Form, MultipartError, PartBegan

BOUNDARY = "x-tidemill"
KIND = f"multipart/form-data; boundary={BOUNDARY}"

NAMES = st.text("abcdefghij[]_", min_size=1, max_size=12)
# Content that resembles a boundary.
CONTENT = st.lists(
    st.binary(max_size=20) | st.sampled_from([b"\r\n", b"--", b"\r\n--x-tide", b"\r", f"--{BOUNDARY}".encode()]),
    max_size=12,
).map(b"".join).filter(lambda content: f"\r\n--{BOUNDARY}".encode() not in b"\r\n" + content)  # fmt: skip
PARTS = st.lists(st.tuples(NAMES, st.none() | NAMES, CONTENT), max_size=5)


def written(parts: list[tuple[str, str | None, bytes]]) -> bytes:
    """The body of a form."""
    body = b""
    for name, filename, content in parts:
        described = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
        body += f"--{BOUNDARY}\r\nContent-Disposition: {described}\r\nX: y\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def read(body: bytes, cuts: list[int], kind: str = KIND) -> list[tuple[str, str | None, bytes]]:
    """The parts of a body in chunks that end at these places."""
    form = Form(kind)
    places = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    parts: list[tuple[str, str | None, bytes]] = []
    content = b""
    for start, end in itertools.pairwise(places):
        for event in form.feed(body[start:end]):
            match event:
                case PartBegan(name=name, filename=filename):
                    parts.append((name, filename, b""))
                    content = b""
                case bytes(data):
                    content += data
                case None:
                    parts[-1] = (*parts[-1][:2], content)
    assert form.is_whole
    return parts


@given(PARTS.filter(bool), st.lists(st.integers(0, 600), max_size=20))
def test_chunks_of_any_size_give_the_same_parts(parts, cuts):
    """With the same names, file names and contents."""
    assert read(written(parts), cuts) == parts


def test_chunks_of_one_byte():
    """The smallest chunks."""
    parts = [("purpose", None, b"batch"), ("file", "ä €.jsonl", b"\r\n-\r\n--x-\r\n")]
    body = written(parts)
    assert read(body, list(range(len(body)))) == parts


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_other_bytes_raise_one_error(body, cuts):
    """No other exception than `MultipartError`."""
    form = Form(KIND)
    places = [0, *sorted(cuts), len(body)]
    try:
        for start, end in itertools.pairwise(places):
            form.feed(body[start:end])
    except MultipartError:
        pass


@pytest.mark.parametrize(
    "kind",
    [
        None, "", "application/json", "multipart/form-data", "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 300,
    ],
)  # fmt: skip
def test_the_content_type_must_name_a_boundary(kind):
    """Without one the body cannot be parsed."""
    with pytest.raises(MultipartError):
        Form(kind)


def test_bounds_of_a_form():
    """On parts, on their headers, and a name for each."""
    with pytest.raises(MultipartError, match=f"{PARTS_MAX} parts"):
        read(written([("a", None, b"")] * (PARTS_MAX + 1)), [])
    for headers in (b"A: b\r\n" * 9, b"A: " + b"b" * 5000 + b"\r\n", b"Content-Disposition: form-data\r\n"):
        with pytest.raises(MultipartError):
            Form(KIND).feed(f"--{BOUNDARY}\r\n".encode() + headers + b"\r\n")


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("filename*=UTF-8''na%C3%AFve%20x.jsonl", "na\u00efve x.jsonl"),
        ("filename=\"plain.jsonl\"; filename*=utf-8'en'b%22.jsonl", 'b".jsonl'),
        ("filename*=iso-8859-1''%E4.jsonl; filename=a", "\u00e4.jsonl"),
        ("filename=\"plain.jsonl\"; filename*=utf-8''%ff", "plain.jsonl"),
        ("filename=\"plain.jsonl\"; filename*=bogus''a", "plain.jsonl"),
        ("filename=\"; filename*=utf-8''forged\"", "; filename*=utf-8''forged"),
        ("filename*=utf-8''", None),
    ],
)
def test_an_extended_file_name(header, name):
    """As aiohttp and .NET send it (RFC 8187); the plain one replaces an unreadable one."""
    head = f'--b\r\nContent-Disposition: form-data; name="file"; {header}\r\n\r\n'
    (began,) = Form("multipart/form-data; boundary=b").feed(head.encode())
    assert began == PartBegan(name="file", filename=name)


JUNK = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="junk"\r\n\r\n'.encode()


@pytest.mark.parametrize(("head", "filler"), [(JUNK, b"x"), (b"", b"\r\n")], ids=["field", "prefix"])
async def test_ignored_bytes_of_a_chunked_form_are_bounded(client, monkeypatch, head, filler):
    """They would hold one of the few places for uploads for ever."""
    monkeypatch.setattr(parts, "PART_BYTES_MAX", 1_000)
    monkeypatch.setattr(form_reader, "DRAIN_BYTES_MAX", 100_000)
    chunk, sent = filler * (10_000 // len(filler)), 0

    async def body():
        nonlocal sent
        yield head
        while sent < 1_000_000:
            sent += len(chunk)
            yield chunk

    wish = {"filename": "f", "purpose": "batch", "bytes": 1, "mime_type": "text/jsonl"}
    path = f"/uploads/{(await client.post('/uploads', json=wish)).json()['id']}/parts"
    answer = await client.post(path, content=body(), headers={"content-type": KIND})
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "data")
    assert answer.headers["connection"] == "close"
    assert sent <= 1_000 + form_reader.FORM_BYTES_MAX + 100_000 + 3 * len(chunk)


async def test_a_chunked_form_may_be_as_large_as_one_with_a_length(client, monkeypatch):
    """Up to the bytes of the part and those of the form around it."""
    monkeypatch.setattr(parts, "PART_BYTES_MAX", 1_000)
    form = written([("data", "f", b"x" * 1_000)])

    async def body():
        yield b"\r\n" * ((form_reader.FORM_BYTES_MAX + 1_000 - len(form)) // 2)
        yield form

    wish = {"filename": "f", "purpose": "batch", "bytes": 1_000, "mime_type": "text/jsonl"}
    path = f"/uploads/{(await client.post('/uploads', json=wish)).json()['id']}/parts"
    (await client.post(path, content=body(), headers={"content-type": KIND})).raise_for_status()
