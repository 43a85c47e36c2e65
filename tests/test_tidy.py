"""The laws of the house that a machine can check: layers, names, docstrings, lengths, steps of the write path.

They read the source and run none of it, except where the law is about what an import pulls in. DESIGN's laws 1 and 7
are here, and the rules of `CONTRIBUTING.md`. A law that has to bend is changed here, in a commit that gives the reason.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import rayfold
from rayfold.runtime import errors
from tests.conftest import LONGEST

pytestmark = pytest.mark.usefixtures("no_garbage_collection")

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("actors", "runtime", "benchmarks")
OUR_PACKAGES = {"rayfold", "actors", "runtime", "benchmarks"}

KERNEL = (
    "domain.messages",
    "domain.aggregate",
    "domain.projection",
    "domain.declaration",
    "encoding.codec",
    "encoding.catalogue",
    "stream",
    "errors",
    "domain.recorded",
    "testing",
)
STEPS_OF_THE_WRITE_PATH = {
    "actors/client/client.py": (1,),
    "actors/client/command_router.py": (2,),
    "actors/partition/actor.py": (3,),
    "runtime/write/write_loop.py": (4,),
    "runtime/log/writer.py": (5,),
    "actors/partition/broadcast.py": (6,),
    "actors/projection/actor.py": (7, 8),
}
NOUNS_FOR_NOTHING = {"util", "helper", "common", "misc", "base", "manager", "handler", "service"}
BANNED_NOUNS = NOUNS_FOR_NOTHING | {f"{noun}s" for noun in NOUNS_FOR_NOTHING}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "copyreg"}
FUNCTION_LINES_MAX = 70

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources() -> tuple[Path, ...]:
    """Every Python file that ships, by the folder that it really lies in."""
    found = [ROOT / "rayfold/__init__.py", ROOT / "rayfold/testing.py"]
    for folder in SOURCE_FOLDERS:
        found += sorted((ROOT / folder).rglob("*.py"))
    return tuple(found)


@cache
def all_python() -> tuple[Path, ...]:
    return sources() + tuple(sorted((*(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py"))))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Of its tree, which several tests walk through."""
    return tuple(ast.walk(tree(path)))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def under(*folders: str) -> list[Path]:
    return [path for path in sources() if name_of(path).startswith(tuple(f"{folder}/" for folder in folders))]


class Import(NamedTuple):
    """One imported module: its absolute name, and how the line spelt it."""

    module: str
    line: int
    relative: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """What a file imports, wherever it does so; relative imports as `rayfold.…`."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[Import]:
    inside = ("rayfold", *path.relative_to(ROOT).parts[:-1]) if path.parent != ROOT / "rayfold" else ("rayfold",)
    for node in nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, relative=False)
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield Import(module, node.lineno, relative=bool(node.level))
            if node.level:  # `from .. import runtime` names a module too
                for alias in node.names:
                    yield Import(f"{module}.{alias.name}", node.lineno, relative=True)


def test_the_tidy_rules_find_the_source_they_are_about() -> None:
    names = {name_of(path) for path in sources()}
    assert {"rayfold/__init__.py", "runtime/errors.py", "runtime/log/contract.py", "actors/__init__.py"} <= names


# Layers


def test_only_actors_imports_ray() -> None:
    guilty = [f"{name_of(p)}:{i.line}" for p in under("runtime", "rayfold") for i in imports(p) if i.top == "ray"]
    assert not guilty


def test_only_the_log_and_the_read_store_in_lmdb_import_lmdb() -> None:
    """The read store: docs/decisions/0009-read-stores.md."""
    allowed = [*under("runtime/log"), ROOT / "runtime/store/verify.py", ROOT / "runtime/read/stores/lmdb.py"]
    others = [path for path in under("actors", "runtime", "rayfold") if path not in allowed]
    guilty = [f"{name_of(p)}:{i.line}" for p in others for i in imports(p) if i.top == "lmdb"]
    assert not guilty


def test_only_the_read_store_in_duckdb_imports_duckdb_and_only_once_it_is_opened() -> None:
    guilty = [f"{name_of(p)}:{i.line}" for p in under("actors", "runtime") for i in imports(p) if i.top == "duckdb"]
    assert [line.partition(":")[0] for line in guilty] == ["runtime/read/stores/duckdb.py"]
    statements = [node for node in tree(ROOT / "runtime/read/stores/duckdb.py").body if isinstance(node, ast.Import)]
    at_the_top = [alias.name for statement in statements for alias in statement.names]
    assert "duckdb" not in at_the_top, "it is optional: an import at the top would be an error without it"


def test_folders_and_files_of_a_store_are_made_in_one_place() -> None:
    """`runtime/private.py`: 0700 and 0600 from the start, whatever the umask. `O_CREAT` is for `open_private`."""
    makers = re.compile(r"\.mkdir\(|os\.makedirs\(|os\.open\([^)]*O_CREAT|\.touch\(|\.open\(\"[wax]")
    guilty = [
        f"{name_of(path)}:{number}"
        for path in under("actors", "runtime")
        if path.name != "private.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if makers.search(line)
    ]
    assert not guilty


def test_runtime_never_imports_what_stands_above_it() -> None:
    above = ("rayfold.actors", "rayfold.benchmarks")
    guilty = [f"{name_of(p)}:{i.line}" for p in under("runtime") for i in imports(p) if i.module.startswith(above)]
    assert not guilty


def test_inside_the_packages_imports_of_our_own_are_relative() -> None:
    guilty = [
        f"{name_of(path)}:{found.line} imports {found.module}"
        for path in under("actors", "runtime")
        for found in imports(path)
        if found.top in OUR_PACKAGES and not found.relative
    ]
    assert not guilty, "an absolute import of ourselves breaks where a user has folders of these names"


def test_tests_and_examples_import_us_by_our_public_name() -> None:
    guilty = [
        f"{name_of(path)}:{found.line} imports {found.module}"
        for path in all_python()
        if name_of(path).startswith(("tests/", "examples/"))
        for found in imports(path)
        if not found.relative and found.top in OUR_PACKAGES - {"rayfold"}
    ]
    assert not guilty


@pytest.mark.parametrize("module", KERNEL)
def test_the_kernel_imports_neither_ray_nor_lmdb(module: str) -> None:
    tops = {found.top for found in imports(ROOT / f"runtime/{module.replace('.', '/')}.py")}
    assert not tops & {"ray", "lmdb"}


def in_a_fresh_interpreter(program: str) -> list[str]:
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


WHICH_HEAVY_ONES = "import sys; print(*sorted({'ray', 'lmdb', 'duckdb'} & set(sys.modules)))"


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import rayfold",
        "from rayfold import Aggregate, Command, Event, Query, Projection, Rejected, Conflict, given, DuckDb, Lmdb",
        "import " + ", ".join(f"rayfold.runtime.{module}" for module in KERNEL),
    ],
)
def test_the_domain_vocabulary_is_imported_without_ray_and_lmdb(statement: str) -> None:
    assert in_a_fresh_interpreter(f"{statement}\n{WHICH_HEAVY_ONES}") == []


@pytest.mark.slow
def test_what_a_program_holds_is_imported_without_ray_and_lmdb() -> None:
    """They are for starting a runtime, or opening a log: a system in memory does neither."""
    statement = "import rayfold.testing; from rayfold import BlockingRuntime, LocalCluster, Runtime, connect, subscribe"
    assert in_a_fresh_interpreter(f"{statement}\n{WHICH_HEAVY_ONES}") == []


@pytest.mark.slow
def test_importing_rayfold_alone_imports_no_module_of_it() -> None:
    program = "import rayfold, sys; print(*[m for m in sys.modules if m.startswith('rayfold.')])"
    assert in_a_fresh_interpreter(program) == []


ROOMS = [path.parent for path in under("actors", "runtime", "benchmarks") if path.name == "__init__.py"]


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_the_init_files_import_nothing(room: Path) -> None:
    assert list(imports(room / "__init__.py")) == [], "an import cycle there kills only Ray's workers"


def test_nothing_that_is_stored_can_be_unpickled() -> None:
    guilty = [f"{name_of(p)}:{i.line}" for p in under("runtime") for i in imports(p) if i.top in UNPICKLERS]
    assert not guilty


# Public names


def test_the_public_names_are_the_same_for_a_type_checker_and_at_run_time() -> None:
    imported = {
        alias.name: found.module
        for found in nodes(ROOT / "rayfold/__init__.py")
        if isinstance(found, ast.ImportFrom) and found.level
        for alias in found.names
    }
    assert imported.keys() == set(rayfold.__all__)
    assert len(rayfold.__all__) == len(set(rayfold.__all__))
    for name, module in imported.items():
        assert rayfold._HOME.get(name, rayfold._HOME_OF_ERRORS) == f".{module}", name


@pytest.mark.parametrize("name", rayfold.__all__)
def test_every_public_name_is_where_the_package_says(name: str) -> None:
    assert getattr(rayfold, name) is not None
    assert name in dir(rayfold)


def test_every_error_is_a_public_name() -> None:
    of_callers = {name for name in errors.__all__ if name not in {"to_wire", "from_wire"}}
    assert of_callers <= set(rayfold.__all__)


def test_a_misspelt_public_name_is_told_what_it_may_have_meant() -> None:
    with pytest.raises(AttributeError) as told:
        _ = rayfold.Agregate  # type: ignore[attr-defined]
    assert str(told.value) == "module 'rayfold' has no attribute 'Agregate'; did you mean 'Aggregate'?"


def test_a_name_like_no_other_is_refused_without_a_guess() -> None:
    with pytest.raises(AttributeError) as told:
        _ = rayfold.zzzzzz  # type: ignore[attr-defined]
    assert str(told.value) == "module 'rayfold' has no attribute 'zzzzzz'"


# Files and functions


def test_no_file_is_named_for_nothing_in_particular() -> None:
    guilty = [name_of(path) for path in sources() if BANNED_NOUNS & set(path.stem.split("_"))]
    guilty += [name_of(path) for path in all_python() if path.stem in BANNED_NOUNS]
    assert not guilty


def test_the_random_numbers_of_a_program_are_its_own() -> None:
    """Drawing from the state that `random.seed` sets would change what the program, or its test, gets next."""
    guilty = [
        f"{name_of(path)}:{node.lineno} {ast.unparse(node)}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] in ("actors", "runtime")
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random"
        if node.attr not in ("Random", "SystemRandom")
    ]
    assert not guilty


def test_no_function_is_longer_than_its_bound() -> None:
    lengths = {
        f"{name_of(path)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in sources()
        for node in nodes(path)
        if isinstance(node, Function)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES_MAX}


@pytest.mark.parametrize(("file", "steps"), STEPS_OF_THE_WRITE_PATH.items(), ids=STEPS_OF_THE_WRITE_PATH.keys())
def test_a_file_of_the_write_path_says_which_step_it_is(file: str, steps: tuple[int, ...]) -> None:
    docstring = ast.get_docstring(tree(ROOT / file)) or ""
    assert [f"[{step}]" for step in steps if f"[{step}]" not in docstring] == []


# Docstrings


def test_every_module_has_a_docstring() -> None:
    assert not [name_of(path) for path in all_python() if not ast.get_docstring(tree(path))]


def public_definitions(path: Path) -> Iterator[tuple[str, ast.ClassDef | None, ast.ClassDef | Function]]:
    """Public classes and functions of a module, and the public methods of those classes, each with its class."""
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node.name, None, node
            if isinstance(node, ast.ClassDef):
                for part in node.body:
                    if isinstance(part, Function) and not part.name.startswith("_"):
                        yield f"{node.name}.{part.name}", node, part


def named(expression: ast.expr) -> str:
    """The last name in a base class or decorator: `Protocol` of `typing.Protocol[T]`."""
    return ast.unparse(expression).partition("[")[0].partition("(")[0].rpartition(".")[2]


@cache
def classes() -> dict[str, ast.ClassDef]:
    return {n.name: n for path in sources() for n in nodes(path) if isinstance(n, ast.ClassDef)}


def documented_above(owner: ast.ClassDef, method: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a class that `owner` derives from, or a protocol that it may keep, documents the method."""
    for base in (named(base) for base in owner.bases):
        if base in seen:
            continue
        if (above := classes().get(base)) is None:  # not ours: documented where it comes from
            if base not in {"object", "NamedTuple", "Protocol", "Generic", "BaseModel", "Enum", "Exception"}:
                return True
        elif documents(above, method) or documented_above(above, method, seen | {base}):
            return True
    protocols = [found for found in classes().values() if "Protocol" in map(named, found.bases)]
    return any(documents(protocol, method) for protocol in protocols)


def documents(owner: ast.ClassDef, method: str) -> bool:
    return any(isinstance(n, Function) and n.name == method and ast.get_docstring(n) for n in owner.body)


HANDLERS = {"decide", "evolve", "project", "answer", "react", "accepted", "refused", "woken", "effect", "settle"}
"""Decorators of methods that are described by the message that they handle."""


def test_every_public_class_function_and_method_has_a_docstring() -> None:
    missing = [
        f"{name_of(path)}:{node.lineno} {name}"
        for path in sources()
        for name, owner, node in public_definitions(path)
        if not ast.get_docstring(node)
        and not {"overload", "setter", *HANDLERS} & {named(decorator) for decorator in node.decorator_list}
        and not (owner and (owner.name.endswith(("Handle", "PartitionReader")) or documented_above(owner, node.name)))
    ]
    assert not missing


# Tests and texts


def test_no_test_sleeps() -> None:
    guilty = [
        f"{name_of(path)}:{node.lineno}"
        for path in all_python()
        if name_of(path).startswith("tests/")
        for node in nodes(path)
        if (isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep")
        or (isinstance(node, ast.ImportFrom) and node.module == "time" and "sleep" in {a.name for a in node.names})
    ]
    assert not guilty, "wait for what is to happen, not for a while"


# Put together from parts, so that this file passes its own test.
HOSTS = ("py" + r"pi\.org", "python" + "hosted", "registry" + r"\.npmjs", "--index" + "-url")
PLACES = ("ro" + "ot", "wo" + "rk", "ho" + "me", "Us" + "ers")
PACKAGE_HOSTS = re.compile("|".join(HOSTS))
LOCAL_PATHS = re.compile(rf"(?<![\w./~-])/(?:{'|'.join(PLACES)})/")


def files_of_the_repository() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files are ours is unknown")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [PACKAGE_HOSTS, LOCAL_PATHS], ids=["package host", "local path"])
def test_no_file_names_a_package_host_or_a_place_on_one_machine(pattern: re.Pattern[str]) -> None:
    files = files_of_the_repository()
    assert ROOT / "pyproject.toml" in files
    guilty = [
        f"{name_of(path)}:{number} {line.strip()[:80]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not guilty


def test_every_pin_is_an_exact_version_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 40
    assert not [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", pin)]


def test_the_files_of_tests_that_come_first_are_there() -> None:
    assert not [name for name in LONGEST if not (ROOT / "tests" / name).is_file()]


# What nothing uses

ENTRIES = {
    "rayfold/__init__.py": "what users import",
    "actors/cli/__main__.py": "the script `rayfold`, in pyproject.toml",
    "benchmarks/bench/commands.py": "an entry point of `rayfold`, in pyproject.toml",
    "benchmarks/flights/commands.py": "an entry point of `rayfold`, in pyproject.toml",
    "benchmarks/torture/commands.py": "an entry point of `rayfold`, in pyproject.toml",
}
"""Files that no other one imports, and who uses them."""


@cache
def words(path: Path) -> frozenset[str]:
    """What stands between quotes, without docstrings."""
    return frozenset(word for text in _texts(path) for word in re.findall(r"\w+", text))


def _texts(path: Path) -> Iterator[str]:
    docs = {node.value for node in nodes(path) if isinstance(node, ast.Expr)}
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
            yield node.value


def unused_files(names: Iterable[str]) -> set[str]:
    """Those that no source imports, or names in a text: suites, scenarios and programs of their own are found so."""
    imported = {found.module for path in sources() for found in imports(path)}
    named = frozenset[str]().union(*map(words, sources()))
    modules = {name: f"rayfold.{name.removesuffix('.py').replace('/', '.')}" for name in names}
    return {name for name, module in modules.items() if module not in imported and Path(name).stem not in named}


def test_every_file_is_used_by_another_one() -> None:
    files = {name_of(path) for path in sources() if path.name != "__init__.py"} | {"rayfold/__init__.py"}
    files -= {name_of(path) for path in under("benchmarks/experiments")}  # run by hand, and in a test
    assert unused_files(files) - ENTRIES.keys() == set(), "delete them, or write in ENTRIES what uses them"
    assert ENTRIES.keys() - files == set(), "there is no such file any more"


def test_a_file_that_nothing_uses_is_found() -> None:
    assert unused_files(["runtime/errors.py", "runtime/nobody_imports_this.py"]) == {"runtime/nobody_imports_this.py"}


def test_every_name_that_the_check_for_dead_code_passes_over_is_there() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["vulture"]
    words = {word for path in sources() for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    assert [name for name in settings["ignore_names"] if name not in words] == []
