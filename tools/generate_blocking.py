"""Write `actors/api/blocking.py`: the blocking API, from the signatures of the asynchronous one.

`make blocking` runs it; a test sees that the file is what this makes. Each operation is written once, in
`actors/api/operations.py`, `session.py` or `runtime.py`; what waits, and how, is in `actors/api/portal.py`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "actors" / "api"
TARGET = API / "blocking.py"

WIDTH = 108
"""Of a line of a docstring, without its indent and the quotes that end it."""

Function = ast.FunctionDef | ast.AsyncFunctionDef

HEADER = '''"""The blocking API: what `Runtime`, `Session` and the other asynchronous classes are, without `await`.

Beside step [1]. Written by `tools/generate_blocking.py` (`make blocking`) from `operations.py`, `session.py` and
`runtime.py`: edit those. `portal.py` has what waits. Ctrl-C while a call waits is an ordinary `KeyboardInterrupt`, and
leaving the `with` stops everything.
"""

from __future__ import annotations
'''

OPERATIONS = '''
class BlockingOperations(Portal):
    """What `Operations` is, without `await`: what `BlockingRuntime` and `BlockingConnection` have in common. Safe from
    several threads.

    Example:
        def balance_of(bank: BlockingOperations, account: str) -> int:
            return bank.state_at(Account, account).balance
    """
'''

RUNTIME = '''
class BlockingRuntime(BlockingOperations):
    """`Runtime` without `await`, with the same arguments. Safe from several threads.

    In a notebook: `bank = BlockingRuntime(...).start()`, and `bank.stop()` at the end. Raises what `Runtime`
    raises.

    Example:
        with BlockingRuntime("bank-data", aggregates=[Account], projections=[Balances]) as bank:
            receipt = bank.execute(Account, "alice", Deposit(amount=100))
            print(bank.ask(Balances, BalanceOf(account="alice"), after=receipt))
    """
'''

SESSION = '''
class BlockingSession(SessionPortal):
    """A session of a `BlockingRuntime`; see `Session`.

    Example:
        with bank.session() as me:
            me.execute(Account, "alice", Deposit(amount=5))
            me.ask(Balances, BalanceOf(account="alice"))
    """
'''

WRITTEN_BY_HAND = {"start", "stop", "health"}
"""In `portal.py`."""


def main() -> None:
    """Write the file, or with `--check` end with 1 if it is not what it should be."""
    made = generated()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == made else f"{TARGET} is not up to date: `make blocking`")
    TARGET.write_text(made, encoding="utf-8")


def generated() -> str:
    """The whole file."""
    operations, session, runtime = (parsed(name) for name in ("operations", "session", "runtime"))
    classes = [
        OPERATIONS + "".join(method(one, "self._runtime", "Operations") for one in public(operations, "Operations")),
        SESSION + "".join(method(one, "self._session", "Session") for one in public(session, "Session")),
        RUNTIME + constructor(class_of(runtime, "Runtime")),
    ]
    names = [line for tree in (operations, session, runtime) for line in imports(tree)]
    own = [
        "from collections.abc import Iterator",
        "from ...runtime.arguments import read_here",
        "from ...runtime.feed.events import BlockingEvents",
        "from ...runtime.feed.subscription import BlockingSubscription",
        "from .portal import BlockingRebuild, Portal, SessionPortal",
        "from .operations import Operations",
        "from .runtime import Runtime",
        "from .session import Session",
    ]
    variables = [line for tree in (operations, session) for line in type_variables(tree)]
    variables = [line for line in variables if any(re.search(rf"\b{line.split()[0]}\b", one) for one in classes)]
    exported = '__all__ = ["BlockingOperations", "BlockingRebuild", "BlockingRuntime", "BlockingSession"]'
    parts = [HEADER, "\n".join(dict.fromkeys([*names, *own])), exported, "\n".join(dict.fromkeys(variables)), *classes]
    return formatted("\n\n".join(parts))


def parsed(name: str) -> ast.Module:
    """The source of one module of the API."""
    return ast.parse((API / f"{name}.py").read_text(encoding="utf-8"))


def class_of(tree: ast.Module, name: str) -> ast.ClassDef:
    """A class of the module."""
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def public(tree: ast.Module, name: str) -> Iterator[Function]:
    """The public methods and properties of a class, in their order."""
    for node in class_of(tree, name).body:
        if isinstance(node, Function) and not node.name.startswith("_") and node.name not in WRITTEN_BY_HAND:
            yield node


def imports(tree: ast.Module) -> Iterator[str]:
    """What the module imports; those that are not used are removed afterwards."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            yield ast.unparse(node)


def type_variables(tree: ast.Module) -> Iterator[str]:
    """Those that the module makes."""
    for node in tree.body:
        made = node.value if isinstance(node, ast.Assign) else None
        if isinstance(made, ast.Call) and ast.unparse(made.func) == "TypeVar":
            yield ast.unparse(node)


def method(node: Function, target: str, owner: str) -> str:
    """One method without `await`."""
    decorators = [ast.unparse(one) for one in node.decorator_list]
    returns = "" if node.returns is None else ast.unparse(node.returns)
    call = f"{target}.{node.name}({passed_on(node)})"
    if "property" in decorators:
        body = f"return {target}.{node.name}"
    elif isinstance(node, ast.AsyncFunctionDef):
        body = f"return self._wait({call})"
    elif returns.startswith("AsyncIterator["):
        returns, body = returns.removeprefix("Async"), f"yield from self._pages(lambda: {call})"
    elif returns == "Rebuild":
        returns, body = "BlockingRebuild", f"return BlockingRebuild(self._here(lambda: {call}), self._wait)"
    elif returns == "Session":
        returns, body = "BlockingSession", f"return BlockingSession({call}, self._wait)"
    elif returns.startswith("Subscription"):
        returns, body = f"Blocking{returns}", f"return self._runtime._subscriptions.blocking({call})"
    elif returns.startswith("Events["):
        returns, body = f"Blocking{returns}", f"return {call}.blocking()"
    elif node.args.args[1:] or node.args.kwonlyargs:
        body = f"return self._here(lambda: {call})"  # it changes something
    else:
        body = f"return {call}"
    given = [one for one in node.args.kwonlyargs + node.args.args if one.annotation is not None]
    read = [one.arg for one in given if ast.unparse(one.annotation or one).split(" | ")[0] in ("After", "Until")]
    lines = [f"@{one}" for one in decorators]
    lines.append(f"def {node.name}({ast.unparse(node.args)}) -> {returns}:")
    if "overload" in decorators:
        lines.append("    ...")
    else:
        lines += docstring(f"{summary(node)} See `{owner}.{node.name}`.")
        lines += [*(f"    {one} = read_here({one})" for one in read), f"    {body}"]
    return "\n" + "".join(f"    {line}\n" for line in lines)


def docstring(text: str) -> list[str]:
    """As lines below the `def`."""
    lines = textwrap.wrap(f'"""{text}', WIDTH)
    closed = f'{lines[-1]}"""'
    return [f"    {line}" for line in (*lines[:-1], closed)]


def constructor(owner: ast.ClassDef) -> str:
    """A constructor with the same arguments."""
    init = next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return f"""
    def __init__({ast.unparse(init.args)}) -> None:
        super().__init__(Runtime({passed_on(init)}))
"""


def passed_on(node: Function) -> str:
    """The arguments of the method, handed on under their names."""
    arguments = [one.arg for one in node.args.args[1:]]
    arguments += [f"*{node.args.vararg.arg}"] if node.args.vararg else []
    arguments += [f"{one.arg}={one.arg}" for one in node.args.kwonlyargs]
    return ", ".join(arguments)


def summary(node: Function) -> str:
    """The first sentence of the docstring."""
    text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    first = text.partition(". ")[0].removesuffix(":").replace("async for", "for").replace("async with", "with")
    return first if first.endswith(".") else f"{first}."


def formatted(source: str) -> str:
    """As ruff would have it, without what is not used."""
    fix = ["check", "--fix", "--select"]
    for command in ([*fix, "F401", "-"], [*fix, "I", "-"], ["format", "-"]):
        name = ["--stdin-filename", str(TARGET)]
        ruff = [sys.executable, "-m", "ruff", command[0], "--quiet", *name, *command[1:]]
        source = subprocess.run(ruff, input=source, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return source


if __name__ == "__main__":
    main()
