"""A folder of documents and pictures: a row for each file, or for each page of a PDF that is sent as pictures.

| suffix | column `text` | column `image` |
|---|---|---|
| `.txt`, `.md` | the text | |
| `.html` | its text, without scripts and styles | |
| `.pdf` | its text layer | a page, with `--images` |
| `.png`, `.jpg`, … | | the picture |
"""

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any, Final

import pyarrow as pa
import pypdfium2 as pdfium

from tidemill.tables import RowError, TableError
from tidemill.tables.pictures import encoded
from tidemill.tables.sources.files import File, Files, fingerprint
from tidemill.tables.sources.rows import Rows

TEXTS: Final = frozenset({".txt", ".md", ".markdown", ".rst"})
HTML: Final = frozenset({".html", ".htm", ".xhtml"})
PDF: Final = ".pdf"
PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
SUFFIXES: Final = TEXTS | HTML | PICTURES | {PDF}
FILE_BYTES_MAX: Final = 256 << 20
TEXT_CHARS_MAX: Final = 4 << 20
PAGES_MAX: Final = 10_000
PAGE_PIXELS_MAX: Final = 4_096
"""The longer side of a page that is drawn."""
POINTS_AN_INCH: Final = 72
DOTS_AN_INCH: Final = 150
"""Resolution of a page, unless it gets too large."""
_HIDDEN: Final = frozenset({"script", "style", "template", "noscript", "title"})
"""Elements without visible text. The end tag of `head` may be missing, so what it holds is named."""
_BLOCKS: Final = frozenset(
    {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article"}
)
_SCHEMA: Final = pa.schema([
    pa.field("path", pa.string()), pa.field("page", pa.int32()), pa.field("text", pa.string()),
    pa.field("image", pa.binary()),
])  # fmt: skip


class DocumentSource:
    """The rows of a folder; one that cannot be read has a fault."""

    schema = _SCHEMA
    rows: int | None = None

    def __init__(self, files: Files, *, as_images: bool) -> None:
        """Choose the files.

        Raises:
            TableError: No file is a document or a picture.
        """
        self._files, self._as_images = files, as_images
        self._found = [file for file in files.found if file.suffix in SUFFIXES]
        if not self._found:
            raise TableError(f"{files.address} has no document and no picture: {', '.join(sorted(SUFFIXES))}")
        suffixes = {file.suffix for file in self._found}
        has_pages = as_images and PDF in suffixes
        if not has_pages:
            self.rows = len(self._found)
        self.images: tuple[str, ...] = ("image",) if has_pages or suffixes & PICTURES else ()
        self.kept: tuple[str, ...] = ("path", "page") if has_pages else ("path",)
        # With pages, rows are numbered differently.
        self.fingerprint = fingerprint(self._found) + ("pages" if has_pages else "")

    def read(self, start: int) -> Iterator[Rows]:
        """See `Source.read`; one row at a time, since a row may be large."""
        for file in self._found:
            if not (self._as_images and file.suffix == PDF):
                if start:
                    start -= 1
                else:
                    yield _rows(file, self._whole(file))
                continue
            for row in self._pages(file, start):
                if start:
                    start -= 1
                else:
                    yield _rows(file, row)

    def _whole(self, file: File) -> dict[str, Any]:
        """The row of a file."""
        try:
            content = self._files.read(file, FILE_BYTES_MAX)
            if file.suffix in PICTURES:
                return {"image": content}
            if file.suffix == PDF:
                text = pdf_text(content)
            else:
                text = _decoded(content)
                text = html_text(text) if file.suffix in HTML else text
        except (TableError, RowError) as error:
            return {"fault": str(error)}
        if len(text) > TEXT_CHARS_MAX:
            return {"fault": f"its text has {len(text):,} characters; at most {TEXT_CHARS_MAX:,} are read"}
        return {"text": text} if text.strip() else {"fault": "it has no text"}

    def _pages(self, file: File, skip: int) -> Iterator[dict[str, Any]]:
        """A row for each page, or one with a fault; the first `skip` pages are not drawn."""
        try:
            document = _opened(self._files.read(file, FILE_BYTES_MAX))
        except (TableError, RowError) as error:
            yield {"fault": str(error)}
            return
        with document:
            for number in range(len(document)):
                row: dict[str, Any] = {"page": number + 1}
                if number >= skip:
                    try:
                        row["image"] = _drawn(document, number)
                    except Exception as error:  # noqa: BLE001 - whatever a broken page raises
                        row["fault"] = f"page {number + 1}: {error}"
                yield row


def _rows(file: File, row: dict[str, Any]) -> Rows:
    fault = row.pop("fault", None)
    return Rows(
        pa.RecordBatch.from_pylist([{"path": file.name, **row}], schema=_SCHEMA), {0: fault} if fault else {}
    )


def pdf_text(content: bytes) -> str:
    """The text layer of a PDF; a form feed ends each page.

    Raises:
        RowError: The PDF is broken or encrypted, or has no text.
    """
    with _opened(content) as document:
        pages, size = [], 0
        for number in range(len(document)):
            try:
                page = document[number]
                text = page.get_textpage().get_text_bounded()
            except pdfium.PdfiumError as error:
                raise RowError(f"page {number + 1}: {error}") from error
            size += len(text)
            if size > TEXT_CHARS_MAX:
                raise RowError(f"its text has more than {TEXT_CHARS_MAX:,} characters")
            pages.append(text.replace("\r\n", "\n"))
    if not any(map(str.strip, pages)):
        raise RowError("it has no text layer; --images sends its pages as pictures")
    return "\f".join(pages)


def _opened(content: bytes) -> Any:
    try:
        document = pdfium.PdfDocument(content)
    except pdfium.PdfiumError as error:
        text = str(error)
        raise RowError(
            "it is encrypted: a password is needed" if "assword" in text else f"it is not a readable PDF: {text}"
        ) from error
    if len(document) > PAGES_MAX:
        raise RowError(f"it has {len(document):,} pages; at most {PAGES_MAX:,} are read")
    return document


def _drawn(document: Any, number: int) -> bytes:
    page = document[number]
    longest = max(page.get_size()) / POINTS_AN_INCH
    dots = min(DOTS_AN_INCH, PAGE_PIXELS_MAX / longest) if longest > 0 else DOTS_AN_INCH
    return encoded(page.render(scale=dots / POINTS_AN_INCH).to_pil())


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f"byte {error.start + 1} is not UTF-8") from error


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._hidden += tag in _HIDDEN
        if tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _HIDDEN and self._hidden > 0
        if tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data)


def html_text(text: str) -> str:
    """The visible text of a page, a line for each block.

    Raises:
        RowError: The parser gives it up, as it does with some declarations that are none.
    """
    parser = _Text()
    try:
        parser.feed(text)
        parser.close()
    except AssertionError as error:
        raise RowError(f"it is not readable as HTML: {error}") from error
    lines = (" ".join(line.split()) for line in "".join(parser.pieces).split("\n"))
    return "\n".join(line for line in lines if line)
