"""The page of an invented run, and the command line around it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rayfold.benchmarks.bench import run as bench_module
from rayfold.benchmarks.bench.run import Request, run_bench, run_compare, run_report
from rayfold.benchmarks.harness import registry
from rayfold.benchmarks.harness.registry import SUITES
from rayfold.benchmarks.harness.results import Run, load_run, save_run
from rayfold.benchmarks.report.page import render, write_report
from rayfold.benchmarks.report.plots import SECTIONS
from tests.benchmarks.harness.invented import Invention, whole_run

pytestmark = pytest.mark.slow

TITLES = [
    "Writes against partitions",
    "Writes against commands in flight",
    "Writes by keys and placement",
    "Reads against replicas",
    "Reads against queries in flight",
    "Writes against partitions, a client for each",
    "Reads against replicas, a client for each",
    "Partitions against replicas",
    "Throughput frontier",
    "Interference",
    "Writes and reads at once, 4 partitions and 2 replicas",
    "The same bank on several nodes of one machine",
    "Moves under load",
    "A node lost and back",
    "Latency by percentile",
    "Latency against load",
    "Freshness",
    "Growth with the log",
    "Peers: the same job in the same run",
    "Whole jobs",
    "What the machine allows",
]
OUTSIDE = re.compile(r"""(?:src|href)\s*=\s*["'](?!#|results\.json)|url\((?!#)|@import""")


@pytest.fixture(scope="module")
def page() -> str:
    return render(whole_run())


def small_run() -> Run:
    """Of one figure: a page with every plot takes six seconds, and there is one already."""
    made = Invention()
    made.add("write", "saturated writes", {}, {"commands_per_s": 1000})
    return made.run()


class Reading(HTMLParser):
    """Checks that what is opened is closed, and collects the text of each element."""

    VOID = frozenset({"meta", "br", "hr", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h3":
            self.titles.append(data)


def test_a_whole_run_has_every_plot_and_well_formed_html(page: str) -> None:
    reading = Reading()
    reading.feed(page)
    assert reading.open == []
    assert reading.titles == TITLES
    assert page.count("<svg") == len(TITLES)


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert not OUTSIDE.findall(page)
    assert "<script" not in page


def test_every_plot_follows_the_page_into_the_dark(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "var(--c1)" in page
    assert "#0102" not in page, "a stand-in colour was not replaced"


@pytest.mark.parametrize(
    "told",
    [
        "Partitions from 1 to 8 change the throughput 4.71 times, from 29,300 to 138,000 commands/s.",
        "USL fit: contention 0.10",
        "Extrapolated, not measured: ",
        "With 1 replica, 945/s at 1 in flight become 181,000/s at 4096",
        "The area below the frontier as a share of its box is 0.65 with 1 partition, 1 replica",
        "execute, p99 at half load is 3.00 times what it is alone when reads are at saturated",
        "99 of 100 acknowledged writes are visible to queries within 5.56 ms at 10%, 10.0 ms at 50%, 50.0 ms at 90%",
        "Commands go from 80,000/s alone to 70,000/s beside the other side",
        "queries go from 400,000/s alone to 320,000/s",
        "3 nodes of this machine take 0.80 of the commands that it takes with no cluster",
        "99 of 100 commands take at most 40.0 ms instead of 8.00; a move takes 0.800 s",
        "takes no writes for 7.50 s, 2.50 of them after it is up",
        "6.36 times eventsourcing save (store sqlite)",
        "peers/umadb?depth=64: not installed: umadb",
        "Invented 9000, 8 of 8 cores",
        "400,000 commands/s, 900,000 queries/s",
    ],
)
def test_sentences_are_computed_from_the_figures(page: str, told: str) -> None:
    assert told in page


def test_a_run_of_one_suite_draws_what_it_has_and_nothing_else() -> None:
    made = Invention()
    made.add(
        "freshness", "visible", {"load": 0.5}, {"visible_ms_p50": 1.0, "visible_ms_p99": 2.0, "visible_ms_max": 3.0}
    )
    assert [plot.title for plots in SECTIONS.values() for plot in plots(made.run())] == ["Freshness"]


def test_an_empty_run_has_a_page() -> None:
    assert "Every figure" in render(Invention().run())


def test_broken_invariants_come_first_and_what_came_from_outside_is_escaped() -> None:
    made = Invention()
    made.add("write", "saturated writes", {}, {"commands_per_s": 1.0}, violations={0: "<script>alert(1)</script> lost"})
    text = render(made.run(cpu="<b>cheap</b>"))
    assert "No figure for these" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; lost" in text
    assert "<script>" not in text
    assert "&lt;b&gt;cheap&lt;/b&gt;" in text


def test_the_raw_results_lie_beside_the_page(tmp_path: Path) -> None:
    run = small_run()
    page = write_report(run, tmp_path / "new" / "report")
    assert page.name == "report.html"
    assert load_run(page.with_name("results.json")) == run


def test_a_page_is_made_of_results_that_are_there(tmp_path: Path) -> None:
    save_run(small_run(), tmp_path / "run.json")
    assert run_report(tmp_path / "run.json", tmp_path / "report") == 0
    assert (tmp_path / "report" / "report.html").is_file()


def test_two_files_are_compared_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rate in (("a.json", 1000), ("b.json", 2000)):
        made = Invention()
        made.add("write", "saturated writes", {}, {"commands_per_s": rate})
        save_run(made.run(), tmp_path / name)
    assert run_compare(tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json") == 0
    told = capsys.readouterr().out
    assert "better write/saturated writes: commands_per_s" in told
    assert "1,000 (980 to 1,020) -> 2,000 (1,960 to 2,040), 2.00 times" in told
    assert "by chance alone, 0.8% of unchanged figures would have moved; with more rounds it is fewer" in told
    assert "both runs are of the same machine" in told
    assert "1 figures in both: 1 better, 0 worse, 0 moved, 0 within their intervals" in told
    assert '"verdict": "better"' in (tmp_path / "c.json").read_text()


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request("nosuch"), "there is no suite 'nosuch'; there are ceiling, write, read, scale, latency,"),
        (Request("write", seconds=0.0), "--seconds 0: choose 0.05 to 3600"),
        (Request("write", repeat=0), "--repeat 0: at least one round is needed"),
        (Request("write", directory=Path("nowhere")), "--directory nowhere: there is no such directory"),
        (
            Request("nodes", address="127.0.0.1:1"),
            "--address: the suite nodes starts clusters of its own; leave it out",
        ),
        (Request("write", address="127.0.0.1:1"), "--address 127.0.0.1:1: no cluster answers there: "),
        (Request("write", address="localhost"), "the address of a Ray cluster is HOST:PORT or 'auto', not 'localhost'"),
        (Request("write", json_file=Path("nowhere/x.json")), "--json nowhere/x.json: cannot write a file there"),
    ],
)
def test_a_wrong_request_is_one_line_and_starts_nothing(
    request_: Request, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(request_) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")


def test_without_the_extra_there_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "EXTRA", {"no_such_module": "a-package"})
    assert run_bench(Request("write")) == 2
    told = capsys.readouterr().err
    assert told == "error: not installed: a-package; the benchmarks need pip install rayfold[bench]\n"


def test_stores_are_made_in_a_directory_of_their_own_that_is_gone_afterwards(tmp_path: Path) -> None:
    with bench_module._workplace(tmp_path) as place:
        assert place.parent == tmp_path
        (place / "store").mkdir()
    assert list(tmp_path.iterdir()) == []


def rayfold(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = "from rayfold.actors.cli.main import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nosuch",), "No such command 'nosuch'."),
        (("write", "--partitions", "1,x"), "'1,x' is not a list of numbers, such as 1,2,4"),
        (("write", "--partitions", "0"), "'0': each has to be at least 1"),
        (("replay", "--events", "100,20000"), "'100,20000': each has to be at least 10000"),
        (("replay", "--events", "20000"), "'20000' is one size; a log is compared with the smallest"),
        (("compare", "a.json"), "Missing argument 'B.json'."),
        (("compare", "a.json", "b.json"), "cannot read a.json: No such file or directory"),
    ],
)
def test_wrong_arguments_get_one_line_and_exit_code_2(arguments: tuple[str, ...], told: str) -> None:
    done = rayfold("bench", *arguments, cwd=ROOT)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_the_help_names_every_suite() -> None:
    shown = rayfold("bench", "--help", cwd=ROOT).stdout
    assert [suite for suite in (*SUITES, "all", "compare", "report") if f"\n  {suite} " not in shown] == []


def test_the_command_line_imports_nothing_that_only_benchmarks_need() -> None:
    program = (
        "import sys, rayfold.actors.cli.main;"
        "print(sorted({'ray', 'lmdb', 'matplotlib', 'scipy', 'numpy', 'hdrh', 'eventsourcing'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
