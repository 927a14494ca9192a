"""Prompts: the columns of a row, and bounds on what a template does."""

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tidemill.tables import RowError, TableError
from tidemill.tables.templates import Template, reference

GLOBALS = sorted(ImmutableSandboxedEnvironment().globals)
METHODS = [name for name in dir(dict) if not name.startswith("_")]


def rendered(template, **row):
    """The prompt of one row."""
    return Template(template, row, name="prompt.md").render(row)


def test_columns_are_variables():
    """All of them are in `row` too, for names that are no variables; nested values have fields."""
    assert rendered("{{ text }}: {{ row['odd name'] }}", **{"text": "a", "odd name": 7}) == "a: 7"
    assert (
        rendered("{% for tag in who.tags %}{{ loop.index }}{{ tag }} {% endfor %}", who={"tags": "xy"}) == "1x 2y "
    )
    assert rendered("{{ a or 'none' }}{% if a is none %}!{% endif %}", a=None) == "none!"
    with pytest.raises(RowError, match="null"):
        rendered("{{ a }}", a=None)


@pytest.mark.parametrize(
    "text",
    [
        "{{ a }}", "{{ a[:2] }}", "{{ a|upper }}", "{{ a ~ '!' }}", "{{ row }}", "{{ tags }}",
        "{{ tags|join(' ') }}", "{{ who }}", "{{ who.photo }}", "{{ pairs }}", "{{ 'a'.encode() }}",
    ],
)  # fmt: skip
def test_bytes_are_no_text(text):
    """Python would write their literal, and the model would read `b'…'`."""
    row = {"a": b"abc", "tags": [b"x"], "who": {"photo": b"y"}, "pairs": [("k", b"z")]}
    with pytest.raises(
        RowError, match=r"bytes, not text; cast the column to a string, or `\{\{ column.decode\(\) \}\}`"
    ):
        rendered(text, **row)


def test_bytes_can_be_decoded():
    """As UTF-8; others are a fault of their row."""
    assert rendered("{{ a.decode() }}{{ tags[0].decode() }}{{ a|length }}", a="ä".encode(), tags=[b"x"]) == "äx2"
    with pytest.raises(RowError, match="UnicodeDecodeError"):
        rendered("{{ a.decode() }}", a=b"\xff")
    assert rendered("{{ pairs }}", pairs=[("k", 1)]) == "[('k', 1)]"


def test_only_used_columns_are_read():
    """Unless `row` is used."""
    assert Template("{{ a }}", "abc", name="p").columns("abc") == ["a"]
    assert Template("{{ row }}", "abc", name="p").columns("abc") == "abc"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ txt }}", "p.md uses {{ txt }}; the columns are text"),
        ("\n{% if %}", "p.md, line 2"),
        ("{% macro a() %}{% endmacro %}", "macro"),
        ("{% include 'x' %}", "include"),
        ("{% for a in text recursive %}{{ loop(a) }}{% endfor %}", "recursive"),
        ("{{ text|center(9) }}", "center"),
        ("{{ text|batch(9) }}", "batch"),
        ("{% set x %}a{% endset %}", "assignblock"),
        ("{{ lipsum() }}", "lipsum"),
        ("a" * (1 << 20) + "b", "characters"),
    ],
)
def test_a_faulty_template_is_refused_at_once(text, said):
    """Before any row is asked."""
    with pytest.raises(TableError) as caught:
        Template(text, ["text"], name="p.md")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ text * 1000 }}{% endfor %}",
        "{{ text * 999999999999 }}",
        "{{ 9 ** 999999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{% set ns = namespace(x=text) %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ text.__class__.__mro__ }}",
        "{{ text.nothing.at_all }}",
        "{{ text / 2 }}",
        "{{ text.append(1) }}",
        "{{ none }}",
        "{% set n = namespace(x=text) %}{% for a in range(25) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x=[]) %}{% for a in range(9) %}{% set n.x = n.x + [text * 5000000] %}{% endfor %}",
        "{% set ns = namespace(x=9) %}{% for a in range(22) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ '{:>60000000}'.format(text)|length }}",
        "{{ '{a:>60000000}'.format_map({'a': 1})|length }}",
        "{{ text['ljust'](60000000)|length }}",
        "{{ text.rjust(60000000)|length }}",
        "{{ text.center(60000000)|length }}",
        "{{ text.zfill(60000000)|length }}",
        "{{ ('\\t' * 9).expandtabs(9999999)|length }}",
        "{{ text.translate({97: 'b' * 9999999, 98: 'b' * 9999999})|length }}",
        "{{ (9).to_bytes(60000000)|length }}",
        "{{ ('a' * 9999).replace('a', 'b' * 9999)|length }}",
        "{{ ('a' * 9999)|replace('a', 'b' * 9999)|length }}",
        "{{ ('b' * 9999).join('a' * 9999)|length }}",
        "{{ ('a' * 9999)|join('b' * 9999)|length }}",
        "{% for a in range(9) %}{% set b = (text * 1000000).upper() %}{% set b = b.lower() %}{% endfor %}",
        "{{ 7|round(99999, 'ceil') }}",
        "{{ {'a': 1}|tojson(indent=60000000)|length }}",
    ],
)
def test_what_exceeds_the_bounds_is_a_fault_of_its_row(text):
    """It ends soon, and says why."""
    with pytest.raises(RowError):
        rendered(text, text="abc")


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("{{ a ~ '-' ~ 1 ~ [2] }}", "abc-1[2]"),
        ("{% set x = a ~ a %}{{ (x ~ 1) | upper }}", "ABCABC1"),
        ("{{ tags|join(', ') }}; {{ ', '.join(tags) }}; {{ who|join('+', attribute='n') }}", "x, y; x, y; 1+2"),
        ("{{ a.replace('b', '') }}{{ a|replace('b', 'B') }}{{ 'aaa'.replace('a', 'b', 2) }}", "acaBcbba"),
        ("{{ 'aaa'|replace('a', 1, count=1) }}{{ raw.replace(raw, raw * 2).decode() }}", "1aarr"),
        ("{{ 2.345|round(1) }} {{ tags|tojson }} {{ 3 * 4 }} {{ a * 2 }}", '2.3 ["x", "y"] 12 abcabc'),
        ("{{ a.upper() }} {{ a.split('b')|length }} {{ a[1:] }}", "ABC 2 bc"),
    ],
)
def test_bounded_operators_filters_and_methods_keep_their_results(text, prompt):
    """As in any other template of Jinja."""
    assert rendered(text, a="abc", tags=["x", "y"], who=[{"n": 1}, {"n": 2}], raw=b"r") == prompt


@pytest.mark.parametrize("name", [*GLOBALS, "loop", "caller", "count", "index"])
def test_a_column_comes_before_a_function_of_its_name(name):
    """The model would read `<function …>`, and the row would count as answered."""
    assert rendered(f"{{{{ {name} }}}}", **{name: "value", "text": "a"}) == "value"
    assert Template(f"{{{{ {name} }}}}", [name], name="p").columns([name]) == [name]


@pytest.mark.parametrize("name", [*METHODS, "count", "index", "__class__"])
def test_a_field_comes_before_a_method_of_its_name(name):
    """In an object, in one of a list, and in the dict of all columns."""
    assert rendered(f"{{{{ order.{name} }}}}", order={name: "value"}) == "value"
    assert (
        rendered(f"{{% for each in order.{name} %}}{{{{ each }}}};{{% endfor %}}", order={name: [1, 2]}) == "1;2;"
    )
    assert rendered(
        f"{{{{ orders | map(attribute='{name}') | join(' ') }}}}", orders=[{name: "a"}, {name: "b"}]
    ) == ("a b")
    assert rendered(f"{{{{ row.{name} }}}}", **{name: "value"}) == "value"


@pytest.mark.parametrize(
    "text",
    [
        "{{ order.items }}", "{{ order['items'] }}", "{{ text.title }}", "{{ text.title ~ '!' }}",
        "{{ [text.title] }}",
        "{{ text.title | upper }}", "{{ [text.title] | join }}", "{{ range }}", "{{ [dict] }}", "{{ range(3) }}",
        "{{ cycler }}", "{{ cycler(1, 2) }}", "{{ order.keys() }}", "{{ tags | map('upper') }}",
        "{{ tags | map('upper') ~ '' }}", "{% for tag in tags %}{{ loop }}{% endfor %}", "{{ namespace(a=1) }}",
        "{{ {'a': text.title} | tojson }}",
    ],
)  # fmt: skip
def test_only_data_is_written(text):
    """Python has a description for everything, which says nothing to a model."""
    with pytest.raises(RowError, match="cannot be made"):
        rendered(text, order={"id": 1}, text="a", tags=["x"])


def test_functions_and_methods_can_be_called():
    """They keep their results."""
    row = {"order": {"a": 1}, "text": "abc", "tags": ["x", "y"]}
    assert rendered("{% for name, each in order.items() %}{{ name }}{{ each }}{% endfor %}", **row) == "a1"
    assert rendered("{% for name, each in order | items %}{{ name }}{% endfor %}", order={"items": 1}) == "items"
    assert rendered("{{ text.title() }}{{ text['upper']() }}{{ order.get('a') }}{{ range(2) | list }}", **row) == (
        "AbcABC1[0, 1]"
    )
    assert rendered("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ dict(a=1).a }}", **row) == "ab1"
    assert rendered("{% set s = joiner(';') %}{% for t in tags %}{{ s() }}{{ t }}{% endfor %}", **row) == "x;y"
    assert rendered("{% for tag in tags %}{{ loop.cycle('a', 'b') }}{{ loop.index }}{% endfor %}", **row) == "a1b2"


@pytest.mark.parametrize("value", [2, None, {"a": 1}])
def test_a_call_means_the_method_or_function(value):
    """Data is never called, so a column or a field of its name does not come before it."""
    every = "{% for name, each in row.items() %}{{ name }};{% endfor %}"
    assert rendered(every, items=value, text="a") == "items;text;"
    order = {"get": value, "items": value, "a": {"keys": value, "b": 1}}
    assert rendered("{{ order.get('a').get('b') }}", order=order) == "1"
    assert rendered("{{ order.a.keys() | join(',') }}", order=order) == "keys,b"
    assert rendered("{% for k, v in order.items() if k == 'a' %}{{ v.b }}{% endfor %}", order=order) == "1"
    assert rendered("{% for at in range(3) %}{{ at }}{% endfor %}", range=value) == "012"
    assert rendered("{% for at in range(2) %}{{ range }}{% endfor %}", range="x") == "xx"
    assert rendered("{{ order.items }}{{ order.items() | list | length }}", order={"items": 7}) == "71"
    with pytest.raises(RowError, match="cannot be made"):
        rendered("{{ order.own() }}", order={"own": value})


@pytest.mark.parametrize("name", ["row", "self", "true", "True", "false", "none", "None"])
def test_a_column_named_like_a_word_of_templates_has_another_expression(name):
    """The bare word means something else, so it is refused, with the expression that works."""
    with pytest.raises(TableError) as caught:
        Template(f"{{{{ text }}}} {{{{ {name} }}}}", ["text", name], name="p.md")
    expression = f"row['{name}']"
    assert f"the column of this name is {{{{ {expression} }}}}" in str(caught.value)
    assert reference(name) == expression
    assert rendered(f"{{{{ text }}}} {{{{ {expression} }}}}", **{"text": "a", name: "value"}) == "a value"


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("{{ row.text }}", "a"),
        ("{{ row | length }}", "2"),
        ("{{ row | tojson }}", '{"text": "a", "row": 1}'),
        ("{% for name in row %}{{ name }};{% endfor %}", "text;row;"),
        ("{% for name, each in row.items() %}{{ each }};{% endfor %}", "a;1;"),
        ("{% if 'text' in row %}{{ text }}{% endif %}", "a"),
        ("{{ row.text }}{% for row in [5] %}{{ row }}{% endfor %}", "a5"),
    ],
)
def test_a_column_named_row_forbids_only_to_write_row(text, prompt):
    """It has all columns elsewhere."""
    assert rendered(text, text="a", row=1) == prompt
    expected = r"row has all columns; the column of this name is \{\{ row\['row'\] \}\}"
    with pytest.raises(TableError, match=expected):
        Template("{{ row.text }} {% if text %}{{ row }}{% endif %}", ["text", "row"], name="p")


def test_a_word_of_templates_keeps_its_meaning_elsewhere():
    """A loop may use it, a comparison too, and without the column all of `row` is there."""
    assert rendered("{% for row in rows %}{{ row }}{% endfor %}", rows=[1, 2], row=3) == "12"
    assert rendered("{% if a == true %}yes{% endif %}{{ 1 }}", a=True, true="no") == "yes1"
    assert rendered("{{ row.text }}", text="a") == "a"
    with pytest.raises(TableError, match=r"uses \{\{ self \}\}"):
        Template("{{ self }}", ["text"], name="p")
