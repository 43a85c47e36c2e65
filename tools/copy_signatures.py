"""Copy parameters to where Python has them repeated, so that each is written once.

`make blocking` runs it, before `generate_blocking.py`; `make check` sees that nothing is left to copy. `COPIES` has the
functions that have the parameters of another one, `OVERLOADED` those whose overloads give only what differs in them.
What a body does with a new parameter is written by hand, but for a call that passes all of them on.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

Function = ast.FunctionDef | ast.AsyncFunctionDef

OPERATIONS: Final = "actors/api/operations.py"
SESSION: Final = "actors/api/session.py"
GATEWAY: Final = "actors/api/gateway.py"


class Named(NamedTuple):
    """A function of a file: `name`, or `Class.name`."""

    file: str
    name: str


class Copy(NamedTuple):
    """A function that has the parameters of another one."""

    source: Named
    target: Named
    declares: bool = False
    """It is one of a protocol, and has `...` for each default."""
    call: str = ""
    """What its body passes all of them on to."""


COPIES: Final = (
    Copy(Named(OPERATIONS, "Operations.execute"), Named(SESSION, "Session.execute"), call="self._runtime.execute"),
    Copy(Named(OPERATIONS, "Operations.execute"), Named(GATEWAY, "Gateway.execute"), declares=True),
    Copy(Named(OPERATIONS, "Operations.execute"), Named(GATEWAY, "BlockingGateway.execute"), declares=True),
    Copy(Named(SESSION, "Session.ask"), Named(GATEWAY, "Gateway.ask"), declares=True),
    Copy(Named(SESSION, "Session.ask"), Named(GATEWAY, "BlockingGateway.ask"), declares=True),
    Copy(Named(OPERATIONS, "Operations.subscribe"), Named("actors/api/store_subscription.py", "subscribe")),
    Copy(Named(OPERATIONS, "Operations.events"), Named("runtime/feed/events.py", "read_events")),
)

OVERLOADED: Final = (
    Named(OPERATIONS, "Operations.subscribe"),
    Named(OPERATIONS, "Operations.events"),
    Named("actors/api/store_subscription.py", "subscribe"),
    Named("runtime/feed/events.py", "read_events"),
)

DIFFERING: Final = ("types", "unreadable")
"""Parameters that an overload has of its own."""


class Parameter(NamedTuple):
    """One parameter."""

    name: str
    annotation: ast.expr | None
    default: ast.expr | None
    keyword: bool
    """It is given by name only."""

    def declared(self) -> Parameter:
        """As in an overload or a protocol."""
        return self if self.default is None else self._replace(default=ast.Constant(...))


class Edit(NamedTuple):
    """One replacement, by offsets in the source."""

    begin: int
    end: int
    text: str


def main() -> None:
    """Write the files, or with `--check` end with 1 if one of them is not what it should be."""
    checks, outdated = "--check" in sys.argv[1:], list[str]()
    for one in COPIES:
        outdated += update(one.target, lambda source, one=one: copied(source, one), checks)  # type: ignore[misc]
    for named in OVERLOADED:
        outdated += update(named, lambda source, named=named: overloads(source, named), checks)  # type: ignore[misc]
    if checks and outdated:
        sys.exit(f"not up to date: {', '.join(dict.fromkeys(outdated))}: `make blocking`")


def update(named: Named, edits_of: Callable[[str], Iterable[Edit]], checks: bool) -> list[str]:
    """Make the edits of a file. Its name, if there were any."""
    path = ROOT / named.file
    source = path.read_text(encoding="utf-8")
    edits = sorted(edits_of(source), reverse=True)
    for begin, end, text in edits:
        source = source[:begin] + text + source[end:]
    if edits and not checks:
        ruff = [sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename", str(path), "-"]
        source = subprocess.run(ruff, input=source, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        path.write_text(source, encoding="utf-8")
    return [named.file] if edits else []


def copied(source: str, one: Copy) -> list[Edit]:
    """What makes a function have the parameters of another one, beside those of its own."""
    [*_, original] = functions(ast.parse((ROOT / one.source.file).read_text(encoding="utf-8")), one.source.name)
    [*_, target] = functions(ast.parse(source), one.target.name)
    wanted = {parameter.name: parameter for parameter in parameters(original) if parameter.name != "self"}
    if one.declares:
        wanted = {name: parameter.declared() for name, parameter in wanted.items()}
    present = {parameter.name: parameter for parameter in parameters(target)}
    whole = {**present, **wanted} if present.keys() - wanted.keys() - {"self"} else {**own_self(present), **wanted}
    edits = replaced(source, target, [*whole.values()])
    calls = [node for node in ast.walk(target) if isinstance(node, ast.Call) and ast.unparse(node.func) == one.call]
    for call in calls:
        given = [f"{name}={name}" if parameter.keyword else name for name, parameter in wanted.items()]
        text = f"{one.call}({', '.join(given)})"
        if ast.unparse(call) != text:
            edits.append(Edit(offset(source, call.lineno, call.col_offset), offset_of_end(source, call), text))
    return edits


def own_self(present: dict[str, Parameter]) -> dict[str, Parameter]:
    """The `self` of a method."""
    return {"self": present["self"]} if "self" in present else {}


def overloads(source: str, named: Named) -> list[Edit]:
    """What makes the overloads of a function have its parameters."""
    *declared, whole = functions(ast.parse(source), named.name)
    edits: list[Edit] = []
    for node in declared:
        present = {one.name: one for one in parameters(node)}
        wanted = [
            present[one.name] if one.name in DIFFERING and one.name in present else one.declared()
            for one in parameters(whole)
        ]
        edits += replaced(source, node, wanted)
    return edits


def functions(tree: ast.Module, name: str) -> list[Function]:
    """All definitions of this name: its overloads, and itself."""
    owner, _, name = name.rpartition(".")
    body = tree.body
    if owner:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == owner).body
    return [node for node in body if isinstance(node, Function) and node.name == name]


def parameters(node: Function) -> list[Parameter]:
    """Those of a function, in their order."""
    given = node.args
    defaults = [*[None] * (len(given.args) - len(given.defaults)), *given.defaults]
    placed = [
        Parameter(one.arg, one.annotation, default, False) for one, default in zip(given.args, defaults, strict=True)
    ]
    named = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return placed + [Parameter(one.arg, one.annotation, default, True) for one, default in named]


def replaced(source: str, node: Function, wanted: list[Parameter]) -> list[Edit]:
    """What makes these the parameters of a function, if they are not."""
    placed = [one for one in wanted if not one.keyword]
    named = [one for one in wanted if one.keyword]
    arguments = ast.arguments(
        posonlyargs=[],
        args=[ast.arg(one.name, one.annotation) for one in placed],
        kwonlyargs=[ast.arg(one.name, one.annotation) for one in named],
        kw_defaults=[one.default for one in named],
        defaults=[one.default for one in placed if one.default is not None],
    )
    text = ast.unparse(arguments)
    return [] if ast.unparse(node.args) == text else [Edit(*between_parentheses(source, node), text)]


def between_parentheses(source: str, node: Function) -> tuple[int, int]:
    """Where the parameters of a function begin and end."""
    begins = offset(source, node.lineno, node.col_offset)
    depth, opened = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source[begins:]).readline):
        line, column = token.start
        at = begins + offset(source[begins:], line, column)
        if token.string in ("(", "["):
            depth += 1
            opened = opened or at + 1
        elif token.string in (")", "]"):
            depth -= 1
            if not depth:
                return opened, at
    raise ValueError(f"{node.name} has no parameters")


def offset(source: str, line: int, column: int) -> int:
    """Of a place in the source. The parser counts columns in bytes: no signature has anything but ASCII."""
    return sum(map(len, source.splitlines(keepends=True)[: line - 1])) + column


def offset_of_end(source: str, node: ast.expr) -> int:
    """Where an expression ends."""
    return offset(source, node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)


if __name__ == "__main__":
    main()
