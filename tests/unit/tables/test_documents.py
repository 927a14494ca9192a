"""Folders of documents and pictures: a row for each, with its text or why it has none."""

import io
import struct

import pypdfium2 as pdfium
import pytest
from PIL import Image

from tidemill.tables import RowError
from tidemill.tables.pictures import PIXELS_MAX, data_url
from tidemill.tables.sources.documents import html_text
from tidemill.tables.sources.opening import opened

ENCRYPTED = b"""%%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj
4 0 obj<</Filter/Standard/V 1/R 2/P -4/O<%b>/U<%b>>>endobj
trailer<</Root 1 0 R/Encrypt 4 0 R/ID[<00><00>]>>
""" % (b"11" * 32, b"22" * 32)
"""A password is needed, and no user has it."""


def pdf(*texts):
    """A PDF with a page for each text."""
    pages = b" ".join(b"%d 0 R" % (4 + 2 * at) for at in range(len(texts)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%b]/Count %d>>" % (pages, len(texts)),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for at, text in enumerate(texts):
        stream = b"BT /F1 12 Tf 20 100 Td (%b) Tj ET" % text
        page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Resources<</Font<</F1 3 0 R>>>>/Contents"
        objects += [
            b"%b %d 0 R>>" % (page, 5 + 2 * at),
            b"<</Length %d>>stream\n%b\nendstream" % (len(stream), stream),
        ]
    body = b"".join(b"%d 0 obj\n%b\nendobj\n" % (at, each) for at, each in enumerate(objects, start=1))
    return b"%PDF-1.4\n" + body + b"trailer\n<</Root 1 0 R/Size %d>>\n%%%%EOF\n" % (len(objects) + 1)


def picture(size, mode="RGB", kind="PNG"):
    """A picture in a format."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Documents of all kinds, some of them unreadable."""
    files = {
        "a.txt": "Grüße".encode(),
        "b.md": b"\xff\xfe",
        "c/page.html": b"<head><title>t</title></head><p>One &amp; two</p><script>no()</script><p>three</html>",
        "d.pdf": pdf(b"First page", b"Second page"),
        "e.pdf": ENCRYPTED,
        "f.pdf": b"%PDF-1.4 broken",
        "g.pdf": pdf(b""),
        "h.png": picture((8, 8)),
        "i.zip": b"PK",
        ".hidden.txt": b"no",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def rows_of(folder, start=0, **options):
    """The rows, with the reason why each cannot be asked."""
    found = opened(str(folder), {}, **options).read(start)
    return [(rows.batch.to_pylist()[0], rows.faults.get(0)) for rows in found]


def test_each_document_is_a_row(folder):
    """An encrypted, a broken and an empty PDF say so; other files and hidden ones are left out."""
    found = {row["path"]: (row["text"], fault) for row, fault in rows_of(folder)}
    assert list(found) == ["a.txt", "b.md", "c/page.html", "d.pdf", "e.pdf", "f.pdf", "g.pdf", "h.png"]
    assert found["a.txt"] == ("Grüße", None)
    assert found["c/page.html"] == ("One & two\nthree", None)
    assert found["d.pdf"] == ("First page\fSecond page", None)
    assert "UTF-8" in found["b.md"][1]
    assert "password" in found["e.pdf"][1]
    assert "not a readable PDF" in found["f.pdf"][1]
    assert "--images" in found["g.pdf"][1]
    assert rows_of(folder, 5) == rows_of(folder)[5:]


def test_pages_are_pictures_on_request(folder):
    """A row for each page; one for a PDF that cannot be opened."""
    found = rows_of(folder, as_images=True)
    pages = [(row["path"], row["page"], fault is None) for row, fault in found if row["path"].endswith(".pdf")]
    assert pages == [
        ("d.pdf", 1, True), ("d.pdf", 2, True), ("e.pdf", None, False), ("f.pdf", None, False), ("g.pdf", 1, True),
    ]  # fmt: skip
    first = next(row["image"] for row, _ in found if row["path"] == "d.pdf")
    assert Image.open(io.BytesIO(first)).size == (625, 417)
    assert rows_of(folder, 4, as_images=True) == found[4:]
    pages, files = (opened(str(folder), {}, as_images=as_images).fingerprint for as_images in (True, False))
    assert pages != files


def test_a_small_picture_stays_as_it_is():
    """Others are resized, and become JPEG."""
    small = picture((64, 32))
    assert data_url(small).startswith("data:image/png;base64,")
    assert data_url({"bytes": small, "path": None}) == data_url(small)
    resized = data_url(picture((300, 100), "RGBA"), side=60)
    assert resized.startswith("data:image/jpeg;base64,")
    assert data_url(picture((8, 8), kind="BMP")).startswith("data:image/jpeg")
    assert data_url("data:image/png;base64,AA==") == "data:image/png;base64,AA=="


@pytest.mark.parametrize("value", [b"no picture", None, 7, {"bytes": None, "path": None}, picture((8, 8))[:40]])
def test_what_is_no_picture_is_a_fault_of_its_row(value):
    """It never ends the run."""
    with pytest.raises(RowError):
        data_url(value)


def turned(tag, kind, value):
    """A JPEG that is to be turned, whose EXIF has a broken entry besides."""
    entries = [struct.pack("<HHIHxx", 0x0112, 3, 1, 6), struct.pack("<HHI4s", tag, kind, 1, value)]
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + b"".join(sorted(entries)) + bytes(4)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        turned(0x0100, 1, b"\1\0\0\0"),  # struct.error
        turned(0x010E, 5, b"\1\0\0\0"),  # AttributeError
        turned(0x011A, 1, b"\1\0\0\0"),  # TypeError
        b"DDS " + struct.pack("<I", 124) + bytes(76) + b"ABCD" + bytes(40),  # NotImplementedError
    ],
)
def test_whatever_a_decoder_raises_is_a_fault_of_its_row(content):
    """Else it would end the run, and each one that resumes it."""
    with pytest.raises(RowError, match="picture"):
        data_url(content, side=4)


def test_a_picture_starts_no_program():
    """Pillow hands PostScript over to Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(RowError, match="none of the formats"):
        data_url(eps)


def test_a_picture_that_unpacks_to_gigabytes_is_refused():
    """By its header, before it is decoded."""
    side = int(PIXELS_MAX**0.5) + 2
    with pytest.raises(RowError, match="pixels"):
        data_url(picture((side, side), "1"))


def test_html_in_any_shape_has_text():
    """Broken markup is no error."""
    assert html_text("<p>a<br>b<script>x</script") == "a\nb"
    assert html_text("</script></p>a < b &lt; c") == "a < b < c"
    assert html_text("<head><title>t</title><style>s</style><body><p>shown") == "shown"
    assert html_text("<html><head><meta charset=utf-8><title>t</title><p>shown</p></html>") == "shown"


def test_the_encrypted_example_is_encrypted():
    """PDFium asks for its password."""
    with pytest.raises(pdfium.PdfiumError, match="assword"):
        pdfium.PdfDocument(ENCRYPTED)


@pytest.mark.parametrize("page", ["<![foo[x]]>", "<![ x", "<p>a<![if", "<!DOCTYPE [<!x"])
def test_a_page_that_the_parser_gives_up_is_a_fault_of_its_row(tmp_path, page):
    """The rows beside it stay."""
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text("<p>good")
    rows = [(row, rows.faults) for rows in opened(str(tmp_path), {}).read(0) for row in rows.batch.to_pylist()]
    assert [row["path"] for row, _ in rows] == ["a.html", "b.html"]
    assert rows[1][0]["text"] == "good"
