"""Opens the source that an address names."""

from collections.abc import Mapping
from typing import Final

import pyarrow as pa

from tidemill.tables import TableError
from tidemill.tables.sources import columnar, delimited, documents, objects
from tidemill.tables.sources.files import Files
from tidemill.tables.sources.rows import Source

_ONE_TABLE: Final = ".csv, .tsv, .jsonl, .parquet and .arrow are tables"


def opened(
    address: str, environ: Mapping[str, str], *, as_images: bool = False, output: str | None = None
) -> Source:
    """The source that an address names; with `as_images` pages of PDFs are pictures.

    Raises:
        TableError: It does not exist, has another format, or the output would be a part of it.
    """
    # Arrow's own allocator keeps what it frees: 45 MiB after reading 100,000 rows.
    pa.set_memory_pool(pa.system_memory_pool())
    files = Files(address, environ)
    if output is not None:
        files.check_apart(output)
    tables = [file for file in files.found if file.suffix in columnar.SUFFIXES]
    first = files.found[0]
    if tables and (files.is_folder or len(tables) == len(files.found)):
        return columnar.ColumnarSource(files, tables)
    if files.is_folder or (len(files.found) > 1 and first.suffix in documents.SUFFIXES):
        return documents.DocumentSource(files, as_images=as_images)
    if len(files.found) > 1:
        raise TableError(
            f"{address} matches {len(files.found):,} files; several are read only as Parquet or Arrow"
        )
    if first.suffix in delimited.SUFFIXES:
        return delimited.DelimitedSource(files, first)
    if first.suffix in objects.SUFFIXES:
        return objects.ObjectSource(files, first)
    if first.suffix in documents.SUFFIXES:
        return documents.DocumentSource(files, as_images=as_images)
    raise TableError(
        f"{address}: the format of {first.suffix or 'a file without a suffix'} is not known; {_ONE_TABLE}"
    )
