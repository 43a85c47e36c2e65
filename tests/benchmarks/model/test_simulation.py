"""The simulation against results that can be computed: M/M/1, M/M/c, mean value analysis, and conservation of work."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from rayfold.benchmarks.model.simulation import Cores, Process, Simulation

CUSTOMERS = 15_000


def mean_response_s(arrivals_per_s: float, mean_s: float, cores: int, *, one_process: bool, seed: int = 1) -> float:
    """Of customers that arrive at random and need exponential times: all at one process, or each as a process."""
    chance, simulation = random.Random(seed), Simulation()
    machine = Cores(simulation, cores)
    process, times = Process(simulation, machine), list[float]()

    def arrive() -> None:
        came_s, cpu_s = simulation.now_s, chance.expovariate(1 / mean_s)
        served: Callable[[], None] = lambda: times.append(simulation.now_s - came_s)  # noqa: E731
        (process.do if one_process else machine.use)(cpu_s, served)
        simulation.after(chance.expovariate(arrivals_per_s), arrive)

    arrive()
    simulation.run(events_max=100 * CUSTOMERS, enough=lambda: len(times) >= CUSTOMERS)
    return sum(times) / len(times)


def erlang_response_s(arrivals_per_s: float, mean_s: float, cores: int) -> float:
    """The mean response time of M/M/c, by Erlang's C formula."""
    load = arrivals_per_s * mean_s
    top = load**cores / math.factorial(cores) * cores / (cores - load)
    waits = top / (sum(load**k / math.factorial(k) for k in range(cores)) + top)
    return mean_s + waits * mean_s / (cores - load)


def throughput_by_mva(customers: int, demands_s: list[float], think_s: float) -> float:
    """Of a closed network, by exact mean value analysis (Reiser and Lavenberg, 1980)."""
    queued, rate = [0.0] * len(demands_s), 0.0
    for n in range(1, customers + 1):
        spent = [demand * (1 + before) for demand, before in zip(demands_s, queued, strict=True)]
        rate = n / (think_s + sum(spent))
        queued = [rate * one for one in spent]
    return rate


def closed_per_s(customers: int, demands_s: list[float], think_s: float, cores: int, seed: int = 1) -> float:
    """Of the same network, simulated: a process for each demand, one after the other, then a time to think."""
    chance, simulation = random.Random(seed), Simulation()
    machine, rounds = Cores(simulation, cores), 0
    processes = [Process(simulation, machine) for _ in demands_s]

    def visit(place: int) -> None:
        nonlocal rounds
        if place < len(processes):
            processes[place].do(chance.expovariate(1 / demands_s[place]), lambda: visit(place + 1))
        else:
            rounds += 1
            simulation.after(chance.expovariate(1 / think_s) if think_s else 0.0, lambda: visit(0))

    for _ in range(customers):
        visit(0)
    simulation.run(events_max=100 * CUSTOMERS, enough=lambda: rounds >= CUSTOMERS)
    return rounds / simulation.now_s


@pytest.mark.parametrize("load", [0.3, 0.7])
@pytest.mark.parametrize("one_process", [True, False], ids=["in order", "shared"])
def test_one_server_has_the_response_time_of_m_m_1(load: float, one_process: bool) -> None:
    measured_s = mean_response_s(load / 0.01, 0.01, 1, one_process=one_process)
    assert measured_s == pytest.approx(0.01 / (1 - load), rel=0.07)


@pytest.mark.parametrize("cores", [2, 8])
def test_several_cores_have_the_response_time_of_m_m_c(cores: int) -> None:
    arrivals_per_s = 0.8 * cores / 0.01
    measured_s = mean_response_s(arrivals_per_s, 0.01, cores, one_process=False)
    assert measured_s == pytest.approx(erlang_response_s(arrivals_per_s, 0.01, cores), rel=0.07)


@pytest.mark.parametrize(("customers", "think_s"), [(1, 0.0), (4, 0.0), (4, 0.05), (30, 0.05)])
def test_a_closed_network_has_the_throughput_of_mean_value_analysis(customers: int, think_s: float) -> None:
    demands_s = [0.010, 0.016, 0.005]
    measured = closed_per_s(customers, demands_s, think_s, cores=3)
    assert measured == pytest.approx(throughput_by_mva(customers, demands_s, think_s), rel=0.04)


def test_processes_that_share_one_core_are_together_as_fast_as_that_core() -> None:
    assert closed_per_s(5, [0.010, 0.016, 0.005], 0.0, cores=1) == pytest.approx(1 / 0.031, rel=0.02)


def test_a_wait_in_a_job_holds_its_process_and_no_core() -> None:
    simulation = Simulation()
    machine = Cores(simulation, 1)
    one, other, ended = Process(simulation, machine), Process(simulation, machine), dict[str, float]()
    one.do(1.0, lambda: ended.update(first=simulation.now_s), wait_s=2.0)
    one.do(1.0, lambda: ended.update(second=simulation.now_s))
    other.do(2.0, lambda: ended.update(other=simulation.now_s))
    simulation.run(events_max=100)
    assert ended == pytest.approx({"first": 4.0, "other": 3.0, "second": 5.0})
    assert (machine.busy_s, one.busy_s, one.held_s) == pytest.approx((4.0, 2.0, 2.0))


def test_two_lines_take_turns() -> None:
    simulation, order = Simulation(), list[str]()
    process = Process(simulation, Cores(simulation, 1))
    for name, line in (("a", 0), ("b", 0), ("c", 0), ("x", 1), ("y", 1)):
        process.do(1.0, lambda name=name: order.append(name), line=line)  # type: ignore[misc]
    simulation.run(events_max=100)
    assert order in (list("axbyc"), list("abxcy"))
    assert simulation.now_s == pytest.approx(5.0)


def test_a_run_that_does_not_end_by_itself_is_ended() -> None:
    simulation = Simulation()

    def again() -> None:
        simulation.after(1.0, again)

    again()
    simulation.run(events_max=50)
    assert simulation.events == 50
    simulation.run(events_max=1_000, until_s=60.5)
    assert simulation.now_s == 60.5


def test_faults_in_the_cores_are_found_by_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: cores that are never shared, and one core too many."""
    whole = Cores.__init__

    def planted(self: Cores, simulation: Simulation, count: int) -> None:
        whole(self, simulation, count + 1)

    monkeypatch.setattr(Cores, "__init__", planted)
    assert closed_per_s(5, [0.010, 0.016, 0.005], 0.0, cores=1) != pytest.approx(1 / 0.031, rel=0.1)
    arrivals_per_s = 0.8 * 2 / 0.01
    assert mean_response_s(arrivals_per_s, 0.01, 2, one_process=False) != pytest.approx(
        erlang_response_s(arrivals_per_s, 0.01, 2), rel=0.2
    )
