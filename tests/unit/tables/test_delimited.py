"""CSV and TSV as spreadsheets and other programs write them: delimiters, encodings, headers, wrong quotes."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.tables.sources import delimited
from tidemill.tables.sources.opening import opened


def rows_of(path, start=0):
    """The rows of a source, with their faults."""
    return [
        (row, rows.faults.get(at))
        for rows in opened(str(path), {}).read(start)
        for at, row in enumerate(rows.batch.to_pylist())
    ]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b'id;"Preis, EUR";text\n1;2;3\n', ("id", "Preis, EUR", "text")),
        (b"id;Preis, EUR;text\n1;2;3\n", ("id", "Preis, EUR", "text")),
        (b'"a;b;c",d\n1,2\n', ("a;b;c", "d")),
        (b'"a ""x"" ;;",d\n1,2\n', ('a "x" ;;', "d")),
        (b"id\ttext\n1\t2\n", ("id", "text")),
        (b'id\t"a,b,c\nd,e"\n1\t2\n', ("id", "a,b,c\nd,e")),
        (b'"id\n,,,";text\n1;2\n', ("id\n,,,", "text")),
        (b"\xef\xbb\xbfid;text\n1;2\n", ("id", "text")),
        (b"\n\r\nid;text\n1;2\n", ("id", "text")),
        (b"text\n1\n", ("text",)),
        (b"sep=;\r\nid;a,b,c\n1;2\n", ("id", "a,b,c")),
        (b"\r\n\nsep=;\r\nid;a,b,c\n1;2\n", ("id", "a,b,c")),
        (b"id,label (a;b;c)\n1,2\n", ("id", "label (a;b;c)")),
        (b"name\twith\ttabs,b\n1,2\n", ("name\twith\ttabs", "b")),
        (b'size 24";name;price\n1;2;3\n', ('size 24"', "name", "price")),
        (b'id,size 5",name\n1,2,3\n', ("id", 'size 5"', "name")),
        (b'id;"Preis, EUR"\n"1";"2"\n', ("id", "Preis, EUR")),
        (b'id;"Preis, EUR"\n', ("id", "Preis, EUR")),
        (b"id,a;b\n", ("id", "a;b")),
        (b'"sep=|"\nid|a,b,c\n1|2\n', ("id", "a,b,c")),
        ("id;größe\n1;2\n".encode("utf-16"), ("id", "größe")),
        (b"\xfe\xff" + "id\tgröße\r\n1\t2\r\n".encode("utf-16-be"), ("id", "größe")),
    ],
)
def test_the_header_says_how_a_csv_is_written(tmp_path, content, names):
    """Its delimiter gives the rows as many cells as the header has, or is the one that the file names to Excel."""
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert opened(str(path), {}).kept == names
    rows = [({name: str(at) for at, name in enumerate(names, start=1)}, None)]
    assert rows_of(path) == (rows if content.count(b"\n") > 1 else [])


def test_most_of_the_first_rows_decide_on_the_delimiter(tmp_path):
    """One of them may be faulty, and cells may have any text."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,label (a;b)\n1,"x;y"\n2,"no end\n3;4\n5,z\n' + b"6;7\n" * delimited.SAMPLE_ROWS)
    source = opened(str(path), {})
    assert source.kept == ("id,label (a", "b)")
    path.write_bytes(b'id,label (a;b)\n1,"x;y"\n2,"no end\n3;4\n' + b"5,z\n" * delimited.SAMPLE_ROWS)
    assert opened(str(path), {}).kept == ("id", "label (a;b)")


def test_a_wide_cell_in_the_first_rows_is_no_obstacle(tmp_path):
    """It has more characters than Python's reader allows by default, or than the delimiter is looked for in."""
    path = tmp_path / "a.csv"
    for size in (200_000, 2 * delimited.SAMPLE_CHARS):
        text = "x" * size
        path.write_bytes(f'id;"a,b"\n1;"{text}"\n'.encode())
        assert rows_of(path) == [({"id": "1", "a,b": text}, None)]


def test_opening_reads_only_the_beginning(tmp_path, monkeypatch):
    """Also where the header has a single quote, which ends nowhere."""
    read = []

    class Counted(io.TextIOWrapper):
        def readline(self, size=-1):
            read.append(line := super().readline(size))
            return line

        def __next__(self):
            read.append(line := super().__next__())
            return line

    path = tmp_path / "a.csv"
    path.write_bytes(b'id,size 5",name\n' + b"1,2,3\n" * 60_000)
    monkeypatch.setattr(delimited.io, "TextIOWrapper", Counted)
    assert len(opened(str(path), {}).kept) == 3
    assert len(read) < 100


@given(
    st.sampled_from(",;\t"),
    st.lists(st.text('a,;\t"\n', min_size=1, max_size=6), min_size=2, max_size=5, unique=True),
)
def test_names_with_delimiters_are_quoted(tmp_path_factory, comma, names):
    """As the standard writer quotes them, where it has no reason to leave another delimiter bare."""
    path, text = tmp_path_factory.mktemp("csv") / "a.csv", io.StringIO()
    csv.writer(text, delimiter=comma, quoting=csv.QUOTE_ALL).writerows([names, names])
    path.write_bytes(text.getvalue().encode())
    assert rows_of(path) == [(dict(zip(names, names, strict=True)), None)]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (b",text", ("column_1", "text")),
        (b"text,", ("text", "column_2")),
        (b",column_1,", ("column_1_", "column_1", "column_3")),
    ],
)
def test_a_column_without_a_name_has_that_of_its_place(tmp_path, header, names):
    """The index that pandas writes has none."""
    path = tmp_path / "a.csv"
    path.write_bytes(header + b"\n" + b",".join([b"x"] * len(names)) + b"\n")
    assert rows_of(path) == [(dict.fromkeys(names, "x"), None)]


def test_damage_in_utf_16_is_a_fault_of_its_row(tmp_path):
    """Half of a pair, or half of a character at the end."""
    path = tmp_path / "a.csv"
    path.write_bytes("a;b\n1;x\n2;".encode("utf-16") + b"\x00\xd8" + "\n3;y\n4;z".encode("utf-16-le") + b"\x00")
    faults = [fault for _, fault in rows_of(path)]
    assert [faults[0], faults[2]] == [None, None]
    assert [fault.split(":")[1] for fault in (faults[1], faults[3])] == [
        " it is not UTF-16, as the beginning of the file says"
    ] * 2


WRONG = b'id,text\n1,ok\n2,"he said "hi" to me"\n3,"a ""good""\none"\n4,"no end\n5,"x"\n6,"y" \n7,plain\n'


@pytest.mark.parametrize("start", range(7))
def test_a_wrong_quote_is_a_fault_of_its_row(tmp_path, start):
    """The cells are as near to what was meant as they can be, and each other row is whole."""
    path = tmp_path / "a.csv"
    path.write_bytes(WRONG)
    found = rows_of(path, start)
    assert [row["id"] for row, _ in found] == ["1", "2", "3", "4", "5", "6", "7"][start:]
    faults = [None, "line 3", None, "line 6", None, "line 8", None][start:]
    assert [fault and fault.split(":")[0] for _, fault in found] == faults
    texts = {row["id"]: row["text"] for row, fault in found if fault is None}
    expected = {"1": "ok", "3": 'a "good"\none', "5": "x", "7": "plain"}
    assert texts == {name: text for name, text in expected.items() if int(name) > start}
    assert all("a quote in a cell is written twice" in fault for _, fault in found if fault)


def test_a_quote_without_an_end_takes_no_rows_along(tmp_path):
    """It reaches to the end of the file; the rows after it are read again."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,"no end\n' + b"".join(b"%d,ok\n" % number for number in range(2, 3_000)))
    found = rows_of(path)
    assert [row["id"] for row, _ in found] == [str(number) for number in range(1, 3_000)]
    assert [at for at, (_, fault) in enumerate(found) if fault] == [0]


def test_lines_are_read_again_up_to_a_bound(tmp_path, monkeypatch):
    """Each could have a quote that reaches to the end; a row says how many lines it took along."""
    monkeypatch.setattr(delimited, "REREAD_CHARS_MAX", 10)
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,"no end\n2,ok\n3,"no end\n4,ok\n5,ok\n')
    found = rows_of(path)
    assert [row["id"] for row, _ in found] == ["1", "4", "5"]
    assert found[0][1].endswith("it takes 2 more lines along")
