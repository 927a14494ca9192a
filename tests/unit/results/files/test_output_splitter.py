"""A merge is cut into files between two lines, each file as full as its bounds allow."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from tidemill.results.files.output_splitter import WHOLE, OutputSplitter
from tidemill.schemas.resources.batch import Cut

lines_of = st.lists(st.binary(max_size=12).map(lambda text: text.replace(b"\n", b"") + b"\n"), max_size=30)
cuts = st.builds(Cut, lines_max=st.integers(1, 6), bytes_max=st.integers(1, 40)) | st.just(WHOLE)


async def cut_up(lines, cut, chunk):
    """The files, from pieces that have nothing to do with lines."""
    content = b"".join(lines)

    async def pieces():
        for start in range(0, len(content), chunk):
            yield memoryview(content)[start : start + chunk]

    splitter = OutputSplitter(pieces(), array("I", map(len, lines)), cut)
    files, counts = [], []
    while await splitter.has_more():
        before = splitter.lines
        files.append(b"".join([bytes(piece) async for piece in splitter.next()]))
        counts.append(splitter.lines - before)
    return files, counts


def naive(lines, cut):
    """The same, as one would write it with all lines at hand."""
    files = []
    for line in lines:
        if files and len(files[-1]) < cut.lines_max and sum(map(len, files[-1])) + len(line) <= cut.bytes_max:
            files[-1].append(line)
        else:
            files.append([line])
    return files


@given(lines=lines_of, cut=cuts, chunk=st.integers(1, 50))
async def test_files_are_full_and_lines_are_whole(lines, cut, chunk):
    """Whatever the pieces of the merge; a line above the bound has a file of its own."""
    files, counts = await cut_up(lines, cut, chunk)
    expected = naive(lines, cut)
    assert files == [b"".join(file) for file in expected]
    assert counts == [len(file) for file in expected]


async def test_the_last_file_takes_the_rest():
    """Otherwise the output would have more files than a batch can name."""
    lines = [b"%d\n" % number for number in range(9)]

    async def pieces():
        yield memoryview(b"".join(lines))

    splitter = OutputSplitter(pieces(), array("I", map(len, lines)), Cut(lines_max=2, bytes_max=100))
    files = [b"".join([bytes(piece) async for piece in splitter.next(last=number == 2)]) for number in range(3)]
    assert files == [b"".join(lines[:2]), b"".join(lines[2:4]), b"".join(lines[4:])]
    assert not await splitter.has_more()
