"""A visitor: a program of its own that uses the running demo, without having started it.

`python -m rayfold.benchmarks.flights.visitor [NAME]` finds the demo on its cluster by name, signs the guest book of an
airport and reads its own entry. `docs/demo.md` shows it at work.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Final

from rayfold import RayfoldError, connect

from .quiet_ray import hidden_lines_about_the_lost
from .visitors import GuestBook, Guests, GuestsOf, Sign

AIRPORT: Final = "EWR"

PATIENCE_S: Final = 60.0
"""For an answer: a read model whose node has just been lost is built again on another one, which takes some 10 s."""


async def visit(guest: str, airport: str = AIRPORT, address: str = "auto") -> str:
    """Sign, and read it back: `after=receipt` has the answer include what was just written.

    Raises `Unavailable` if no demo runs there, or if the guest book is at home on a node that is gone; `Rejected` for
    a guest without a name.
    """
    async with connect("flights", address=address) as flights:
        with hidden_lines_about_the_lost():
            receipt = await flights.execute(GuestBook, airport, Sign(guest=guest))
            guests = await flights.ask(Guests, GuestsOf(airport=airport), after=receipt, timeout_s=PATIENCE_S)
    where = f"partition {receipt.partition}, position {receipt.position:,}"
    return f"{guest} signed the guest book of {airport} ({where}); the last guests: {', '.join(guests)}"


def main() -> int:
    """Print one line. Exit code 0, 2 with the reason if it cannot be done, or 130 after Ctrl-C."""
    what = "Sign the guest book of an airport in the running demo, and read it back."
    parser = argparse.ArgumentParser("python -m rayfold.benchmarks.flights.visitor", description=what)
    parser.add_argument("name", nargs="?", default="a visitor", help="who signs")
    parser.add_argument("--airport", default=AIRPORT, help="whose guest book; default: %(default)s")
    parser.add_argument("--address", default="auto", metavar="HOST:PORT", help="of the cluster; default: %(default)s")
    options = parser.parse_args()
    try:
        print(asyncio.run(visit(options.name, options.airport, options.address)))
    except RayfoldError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
