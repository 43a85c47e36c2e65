"""Runs the demo in a process of its own: `python -m tests.benchmarks.demo_driver DIRECTORY FLIGHTS JSON`."""

from __future__ import annotations

import sys
from pathlib import Path

from rayfold.benchmarks.flights.demo import DemoOptions, run_demo

if __name__ == "__main__":
    directory, flights, figures = sys.argv[1:]
    sys.exit(run_demo(DemoOptions(Path(directory), flights=int(flights), json=Path(figures))))
