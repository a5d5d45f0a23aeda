# SPDX-License-Identifier: GPL-3.0-or-later
"""Statements that a user wrote, told apart by PostgreSQL's own grammar. Their texts stay what the user wrote."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

from ansible.errors import AnsibleFilterError
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import names

try:
    import pglast
    from pglast.parser import ParseError, scan
    from pglast.stream import RawStream
except ImportError:
    HAS_PGLAST = False
else:
    HAS_PGLAST = True

_PSQL = {
    "\\": "psql's backslash commands can't be used here, only SQL",
    ":": "variables of psql can't be used here: write the value",
}

_NO_UNICODE = re.compile("[\ud800-\udfff]")
"""What Ansible puts in the place of bytes that are not UTF-8"""


class Statement(NamedTuple):
    """One statement: its place, its text without the semicolon, and its parse tree."""

    number: int
    text: str
    line: int | None
    """Where it begins, counted from 1; None in a list"""
    node: Any

    @property
    def label(self) -> str:
        """What sentences about the statement begin with."""
        return _label(self.number, self.line)


class _Piece(NamedTuple):
    text: str
    line: int
    node: Any
    problem: str


def read(source: Any) -> list[Statement]:
    """The statements of a text or of a list of texts. Raises AnsibleFilterError, which lists every syntax error."""
    check_parser()
    listed = not isinstance(source, str)
    if listed and not isinstance(source, Sequence):
        raise AnsibleFilterError("The statements must be a text or a list of texts, not {0!r}.".format(source))
    found: list[Statement] = []
    problems = []
    for piece in _pieces_of([source] if isinstance(source, str) else source):
        line = None if listed else piece.line
        found.append(Statement(len(found) + 1, piece.text, line, piece.node))
        if piece.problem:
            problems.append("{0}: {1}.".format(found[-1].label, piece.problem))
    refuse("The statements can't be read", problems)
    if not found:
        raise AnsibleFilterError("There is no statement in what was given as schema change.")
    return found


def again(texts: Sequence[str], lines: Sequence[int | None]) -> list[Statement]:
    """The statements that read() has found before."""
    check_parser()
    return [
        Statement(number, str(text), line, pglast.parse_sql(str(text))[0].stmt)
        for number, (text, line) in enumerate(zip(texts, lines), 1)
    ]


def check_parser() -> None:
    """Say what is missing where pglast is."""
    if not HAS_PGLAST:
        raise AnsibleFilterError(
            "Schema changes are read with PostgreSQL's grammar, by the Python library pglast, which is not installed "
            "beside Ansible: pip install pglast"
        )


def refuse(heading: str, problems: Sequence[str]) -> None:
    """Fail with all *problems* at once, if there are any."""
    if len(problems) == 1:
        raise AnsibleFilterError("{0}: {1}".format(heading, problems[0]))
    if problems:
        raise AnsibleFilterError("{0}:\n{1}".format(heading, "\n".join("- " + problem for problem in problems)))


def change_id(texts: Iterable[str], name: str = "") -> str:
    """What a change is remembered by; *name* tells it from an earlier one with the same statements."""
    written = ";\n".join(text.strip() for text in texts)
    return hashlib.sha256((name and name + "\x00").encode("utf-8") + written.encode("utf-8")).hexdigest()[:12]


def parsed(text: str) -> Any:
    """The parse tree of one statement that the code itself has made."""
    return pglast.parse_sql(text)[0].stmt


def parsed_if_it_can_be(text: str) -> Any:
    """The parse tree of what a server has printed; None for the syntax of a newer one."""
    try:
        return parsed(text)
    except ParseError:
        return None


def printed(node: Any) -> str:
    """A parse tree as text."""
    text: str = RawStream()(node)
    return text.strip()


def _label(number: int, line: int | None) -> str:
    return "statement {0}".format(number) if line is None else "statement {0} (line {1})".format(number, line)


def _pieces_of(texts: Iterable[Any]) -> Iterator[_Piece]:
    for text in texts:
        if not isinstance(text, str):
            words = "{0!r} is no text; in YAML, quote a statement that holds a colon"
            yield _Piece(repr(text), 1, None, words.format(text))
        elif "\x00" in text:
            yield _Piece("", 1, None, "it holds a null character, which is in no SQL")
        elif _NO_UNICODE.search(text):
            line = _line(text, len(_NO_UNICODE.split(text, 1)[0]))
            yield _Piece("", line, None, "it holds what is not UTF-8: save it as UTF-8")
        else:
            yield from _pieces(str(text).lstrip("\ufeff"))


def _pieces(text: str) -> list[_Piece]:
    """The statements of *text*, parsed at once; each by itself where one of them can't be, to find all that is wrong."""
    try:
        raw: Any = pglast.parse_sql(text)
    except ParseError:
        return list(_torn(text))
    lines = _Lines(text)
    return [
        _Piece(_slice(text, each.stmt_location, each.stmt_len), lines.of(each.stmt_location), each.stmt, "")
        for each in raw
    ]


def _slice(text: str, start: int, size: int) -> str:
    """What the user wrote of one statement, without comments after it, which could swallow what is put behind."""
    written = text[start : start + size] if size else text[start:]
    if "--" in written or "/*" in written:
        ends = [token.end for token in scan(written) if token.name not in ("SQL_COMMENT", "C_COMMENT", "ASCII_59")]
        written = written[: ends[-1] + 1]
    return written.strip().rstrip(";").strip()


class _Lines:
    """Positions as lines, for positions that only grow."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._line = 1

    def of(self, position: int) -> int:
        self._line += self._text.count("\n", self._position, position)
        self._position = position
        return self._line


def _torn(text: str) -> Iterator[_Piece]:
    """The statements of a text that doesn't parse, told apart by their semicolons as psql does it."""
    broken = ""
    try:
        tokens = [(each.start, each.end + 1, each.name) for each in scan(text)]
    except ParseError as error:
        broken, index = error.args
        tokens = [(each.start, each.end + 1, each.name) for each in scan(text[:index])]
        tokens.append((index, len(text), "BROKEN"))
    for start, stop in _between_semicolons(tokens):
        written = text[start:stop]
        if broken and stop == len(text):
            yield _Piece(written, _line(text, tokens[-1][0]), None, broken)
            continue
        try:
            node = pglast.parse_sql(written)[0].stmt
        except ParseError as error:
            message, at = error.args
            index = len(written) if at is None else at
            yield _Piece(written, _line(text, start + index), None, _explained(message, written[index : index + 1]))
        else:
            yield _Piece(written, _line(text, start), node, "")


def _between_semicolons(tokens: Iterable[tuple[int, int, str]]) -> Iterator[tuple[int, int]]:
    """Where statements begin and end, without comments around them."""
    start, last, depth = -1, -1, 0
    for begin, end, name in tokens:
        if name in ("SQL_COMMENT", "C_COMMENT"):
            continue
        depth += (name == "ASCII_40") - (name == "ASCII_41")
        if name == "ASCII_59" and depth <= 0:
            if start >= 0:
                yield start, last
            start, depth = -1, 0
            continue
        start = begin if start < 0 else start
        last = end
    if start >= 0:
        yield start, last


def _line(text: str, position: int) -> int:
    return 1 + text.count("\n", 0, position)


def _explained(message: str, token: str) -> str:
    return "{0}; {1}".format(message, _PSQL[token]) if token in _PSQL else message


def exact(name: str) -> str:
    """A canonical name with quotes around both parts, so that none is taken for a keyword."""
    return ".".join('"{0}"'.format(part.replace('"', '""')) for part in names.parsed(name))


def beside(name: str, other: str) -> str:
    """The canonical name of what is in the schema of *name*, as a table's index is."""
    return quoted(names.parsed(name)[0], other)


def text_literal(text: str) -> str:
    """A text as it is written in a statement."""
    return "'{0}'".format(text.replace("'", "''"))


def expression(text: str) -> Any:
    """The parse tree of an expression that the code itself has made."""
    return parsed("SELECT {0}".format(text)).targetList[0].val


def default_setting(column: str, value: Any) -> Any:
    """The subcommand of ALTER TABLE that sets a default."""
    command = parsed("ALTER TABLE t ALTER COLUMN c SET DEFAULT 1").cmds[0]
    command.name = column
    command.def_ = value
    return command


def constraint_drop(name: str) -> Any:
    """The subcommand of ALTER TABLE that drops a constraint, if it is there."""
    command = parsed("ALTER TABLE t DROP CONSTRAINT IF EXISTS c").cmds[0]
    command.name = name
    return command


def text_list(texts: Iterable[str]) -> Any:
    """A list of names in a parse tree."""
    return tuple(pglast.ast.String(sval=text) for text in texts)
