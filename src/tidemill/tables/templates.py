"""Prompts as Jinja templates over a row, in a sandbox with bounds that catch mistakes like an endless loop."""

import datetime as dt
import decimal
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateError, Undefined, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import do_round, make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import htmlsafe_json_dumps
from jinja2.visitor import NodeTransformer

from tidemill.tables import RowError, TableError

TEMPLATE_CHARS_MAX: Final = 1 << 20
PROMPT_CHARS_MAX: Final = 16 << 20
"""Characters of a prompt."""
MADE_MAX: Final = 4 * PROMPT_CHARS_MAX
"""Characters and items that the operators, filters and methods of one prompt make, all together."""
ROUNDS_MAX: Final = 100_000
"""Rounds of all loops of one prompt."""
EXPONENT_MAX: Final = 64
NUMBER_BITS_MAX: Final = 1 << 14
DIGITS_MAX: Final = 16
"""Digits to round to, and spaces of an indent."""
_REFUSED: Final = (
    nodes.Macro, nodes.CallBlock, nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends,
    nodes.AssignBlock, nodes.FilterBlock,
)  # fmt: skip
_WIDE: Final = frozenset({
    "center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate", "to_bytes",
})  # fmt: skip
"""Methods whose result may have any size."""
_DATA: Final = (
    str, int, float, list, tuple, dict, decimal.Decimal, uuid.UUID,
    dt.date, dt.time, dt.timedelta, Undefined,
)  # fmt: skip
"""What a prompt may write; Python has no text for anything else but a description, like `<function …>`."""
ROW: Final = "row"
"""The variable with all columns."""
SELF: Final = "self"
_CONSTANTS: Final[Mapping[str, bool | None]] = {
    "true": True, "True": True, "false": False, "False": False, "none": None, "None": None,
}  # fmt: skip
_WORDS: Final = {ROW, SELF, *_CONSTANTS, "and", "else", "if", "in", "is", "not", "or"}
"""Names that mean something else in an expression than the column."""
_COUNTED: Final = "_counted"
_CONCATENATED: Final = "_concatenated"
_METHOD: Final = "_method"
_GLOBAL: Final = "_global"


class _Rewriting(NodeTransformer):
    """Makes filters of each `~` and of the name in each call, which Jinja offers no way to intercept.

    A prompt never calls data: `row.items()` and `range(3)` mean no column or field.
    """

    def __init__(self, functions: Iterable[str]) -> None:
        self._functions = frozenset(functions)

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802 - the name of the node
        self.generic_visit(node)
        match node.node:
            case nodes.Getattr(node=owner, attr=name):
                node.node = _filtered(_METHOD, owner, nodes.Const(name))
            case nodes.Name(name=name) if name in self._functions:
                node.node = _filtered(_GLOBAL, nodes.Const(name))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - the name of the node
        self.generic_visit(node)
        return _filtered(_CONCATENATED, nodes.List(node.nodes, lineno=node.lineno))


def _filtered(name: str, value: nodes.Node, *given: nodes.Node) -> nodes.Filter:
    return nodes.Filter(value, name, [*given], [], None, None, lineno=value.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which loops are counted, and no operator, filter or method makes a large value."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=_text, autoescape=False)
        self.begin()
        self.filters |= {
            _COUNTED: self._counted,
            _CONCATENATED: lambda parts: self._joined("", map(_word, parts)),
            _METHOD: lambda owner, name: _wrapped(super(_Environment, self).getattr(owner, name)),
            _GLOBAL: lambda name: self.globals[name],
            "join": self._join,
            "replace": self._replace,
            "round": _rounded,
            "tojson": _as_json,
        }
        for name in ("center", "indent", "format", "wordwrap", "batch", "slice"):
            # Their arguments could ask for any amount of text, and prompts do not need them.
            del self.filters[name]
        del self.globals["lipsum"]
        self.globals = {name: _Function(function) for name, function in self.globals.items()}

    def begin(self) -> None:
        """Count anew, for the next prompt."""
        self.rounds = self.made = 0

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        for kind in _REFUSED:
            if source.find(kind) is not None:
                raise TableError(
                    f"a prompt has no {kind.__name__.lower()}: only variables, filters, `if` and `for`"
                )
        for loop in source.find_all(nodes.For):
            if loop.recursive:
                raise TableError("a prompt has no recursive loop")
            loop.iter = _filtered(_COUNTED, loop.iter)
        _Rewriting(self.globals).visit(source)
        return super()._generate(source, *args, **options)

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.rounds += 1
            if self.rounds > ROUNDS_MAX:
                raise SecurityError(f"its loops have more than {ROUNDS_MAX:,} rounds")
            yield item

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("% makes no text here")
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > NUMBER_BITS_MAX:
                raise SecurityError("the result of * is too large")
            return left * right
        if operator == "**" and not (abs(left) < PROMPT_CHARS_MAX and abs(right) <= EXPONENT_MAX):
            raise SecurityError("the result of ** is too large")
        sizes = [len(side) for side in (left, right) if hasattr(side, "__len__")]
        counts = [abs(side) for side in (left, right) if isinstance(side, int)]
        if sizes:
            self._make(sum(sizes) if operator == "+" else sizes[0] * max(counts, default=0), operator)
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field of an object comes before a method of Python's dict, like `items` or `count`."""
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return _wrapped(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return _wrapped(super().getitem(obj, argument))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _WIDE and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave `format` to `is_safe_attribute`."""

    def call(self, context: Any, function: Any, /, *given: Any, **named: Any) -> Any:
        if isinstance(function, _Function):
            function = function.function
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str | bytes) and name == "replace":
            return self._replaced(owner, *given)
        if isinstance(owner, str | bytes) and name == "join":
            return self._joined(owner, *given)
        found = super().call(context, function, *given, **named)
        self._make(len(found) if isinstance(found, str | bytes | list) else 0, name)
        return found

    def _make(self, size: int, name: str) -> None:
        """Count a value of this size before it is made."""
        self.made += size
        if size > PROMPT_CHARS_MAX or self.made > MADE_MAX:
            raise SecurityError(f"the result of {name} is too large")

    def _join(self, items: Iterable[Any], separator: str = "", attribute: str | int | None = None) -> str:
        found = items if attribute is None else map(make_attrgetter(self, attribute), items)
        return str(self._joined(str(separator), map(_word, found)))

    def _joined(self, separator: Any, items: Iterable[Any]) -> Any:
        """`separator.join(items)`, of texts or bytes."""
        found = []
        for item in items:
            self._make(len(item) + len(separator), "join")
            found.append(item)
        return separator.join(found)

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        return str(self._replaced(str(text), str(old), str(new), -1 if count is None else count))

    def _replaced(self, text: Any, old: Any, new: Any, limit: int = -1) -> Any:
        """`text.replace(old, new, limit)`, of texts or bytes."""
        times = text.count(old) if limit < 0 else min(limit, text.count(old))
        self._make(len(text) + times * max(0, len(new) - len(old)), "replace")
        return text.replace(old, new, limit)


def _rounded(value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > DIGITS_MAX:
        raise SecurityError(f"round has at most {DIGITS_MAX} digits")
    return do_round(value, precision, method)


def _as_json(value: Any, indent: int | None = None) -> str:
    if (indent or 0) > DIGITS_MAX:
        raise SecurityError(f"an indent is at most {DIGITS_MAX} spaces")
    return htmlsafe_json_dumps(value, indent=indent)


class _Function:
    """A function or a method, which a prompt may call and not write."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call it."""
        return self.function(*given, **named)

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", "")
        raise SecurityError(f"{name} is a function and no data; a field of this name would come before it")

    __str__ = __repr__


def _wrapped(found: Any) -> Any:
    return _Function(found) if callable(found) and not isinstance(found, Undefined | _Function) else found


class _Bytes(bytes):
    """Bytes of a row, which are no text: Python would write their literal, `b'…'`."""

    def __repr__(self) -> str:
        raise SecurityError("a value is bytes, not text; cast the column to a string, or `{{ column.decode() }}`")

    __str__ = __repr__


def _of_row(value: Any) -> Any:
    """A value of a row, whose bytes no filter and no container writes as text."""
    match value:
        case bytes():
            return _Bytes(value)
        case list() | tuple():
            return type(value)(map(_of_row, value))
        case dict():
            return {name: _of_row(each) for name, each in value.items()}
    return value


def _text(value: Any) -> Any:
    if value is None:
        # Jinja would write the word None.
        raise SecurityError("a value is null; `{{ column or '' }}` allows that")
    if isinstance(value, bytes):
        return _Bytes(value)
    if not isinstance(value, (*_DATA, _Function)):
        raise SecurityError(f"a value is a {type(value).__name__} and no data; `| list` makes a list of several")
    return value


def _word(value: Any) -> str:
    """A part of a joined text, in which null is the word None, as in Jinja."""
    return str(value if value is None else _text(value))


def reference(column: str) -> str:
    """The expression for the value of a column."""
    return column if column.isidentifier() and column not in _WORDS else f"{ROW}[{column!r}]"


def _hidden(tree: nodes.Template, unknown: set[str], columns: Iterable[str]) -> Iterator[str]:
    """The columns whose name the template writes, with which it means something else."""
    present = set(columns) & _WORDS
    written = [each for output in tree.find_all(nodes.Output) for each in output.nodes]
    is_written = any(isinstance(each, nodes.Name) and each.name == ROW for each in written)
    if is_written and ROW in present & unknown and not _stores(tree, ROW):
        yield ROW
    constants = [each.value for each in written if isinstance(each, nodes.Const)]
    for name in sorted(present & _CONSTANTS.keys()):
        if any(each is _CONSTANTS[name] for each in constants):
            yield name


def _uses_self(tree: nodes.Template) -> bool:
    return any(each.name == SELF for each in tree.find_all(nodes.Name)) and not _stores(tree, SELF)


def _stores(tree: nodes.Template, name: str) -> bool:
    return any(each.name == name and each.ctx == "store" for each in tree.find_all(nodes.Name))


class Template:
    """A compiled template; for use by one thread at a time."""

    def __init__(self, text: str, columns: Iterable[str], *, name: str) -> None:
        """Compile a template; `name` names it in messages.

        Raises:
            TableError: It is invalid, or uses a column that the source does not have.
        """
        if len(text) > TEMPLATE_CHARS_MAX:
            raise TableError(f"{name} has more than {TEMPLATE_CHARS_MAX:,} characters")
        self._text = text
        self._environment = _Environment()
        try:
            # Jinja does not count a variable that has the name of a function.
            plain = _Environment()
            plain.globals = {}
            tree = plain.parse(text)
            unknown = meta.find_undeclared_variables(tree)
            self._template = self._environment.from_string(text)
        except TableError as error:
            raise TableError(f"{name}: {error}") from error
        except (TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            raise TableError(f"{name}{f', line {line}' if line else ''}: {error}") from error
        columns = list(columns)
        self._used = sorted(unknown - (set(self._environment.globals) - set(columns)) - {ROW, SELF})
        self._uses_all = ROW in unknown
        hidden, missing = [*_hidden(tree, unknown, columns)], [each for each in self._used if each not in columns]
        if _uses_self(tree):
            (hidden if SELF in columns else missing).append(SELF)
        if hidden:
            raise TableError(
                f"{name}: {hidden[0]} {'has all columns' if hidden[0] == ROW else 'is a word of templates'}; "
                f"the column of this name is {{{{ {reference(hidden[0])} }}}}"
            )
        if missing:
            raise TableError(
                f"{name} uses {', '.join(f'{{{{ {each} }}}}' for each in missing)}; "
                f"the columns are {', '.join(columns[:50])}"
            )

    def __str__(self) -> str:
        return self._text

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """The columns that it uses, of those of the source; all, if it uses `row`."""
        return names if self._uses_all else self._used

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt of a row, whose columns are variables, and `row` has them all.

        Raises:
            RowError: The row lacks something, or the prompt gets too long.
        """
        self._environment.begin()
        pieces, size = [], 0
        values = {name: _of_row(value) for name, value in row.items()}
        try:
            for piece in self._template.generate({**values, ROW: values}):
                size += len(piece)
                if size > PROMPT_CHARS_MAX:
                    raise RowError(f"its prompt has more than {PROMPT_CHARS_MAX:,} characters")
                pieces.append(piece)
        except (SecurityError, UndefinedError, TemplateError) as error:
            raise RowError(f"its prompt cannot be made: {error}") from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            # A value of another type than the template expects.
            raise RowError(f"its prompt cannot be made: {type(error).__name__}: {error}"[:300]) from error
        return "".join(pieces)
