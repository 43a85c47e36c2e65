"""Run the Python blocks of pages, in a program with a running bank: `python -m tests.docs.blocks_driver PAGE...`.

Each page has names of its own, beginning with those of the README's bank and of `SETUPS`; its blocks run one after the
other and may await. A block that waits for events without end ends when it has used the first one: `print` and the
names of `ENOUGH` then raise. Prints `ran PAGE:LINE` for each block.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import re
import sys
from types import CodeType
from typing import Any

import rayfold
from rayfold import Envelope, Receipt, Runtime
from tests.docs.pages import ROOT, Block, blocks_of

EXAMPLE = blocks_of(ROOT / "README.md")[0].code.partition("with BlockingRuntime")[0]
CLASSES = ("Deposit", "Deposited", "Account", "BalanceOf", "Balances")

ENDLESS = re.compile(r"^(?:async )?for .* in (?:bank\.)?subscribe\(", re.MULTILINE)

EVENTS = 4_000
"""So many that both partitions have more than the 1,200 that a page names."""

SETUPS = {
    "docs/guarantees.md": "import asyncio, random",
    "docs/anchors.md": "from pathlib import Path\nfrom rayfold.runtime.backup.anchor import new_key, read_key",
    "docs/consistency.md": "query = BalanceOf(account='alice')\naccounts = ['alice']\nTurnover = Balances",
    "docs/observing.md": "from datetime import UTC\nfrom datetime import datetime as _datetime\n"
    "datetime = lambda *_, **__: _datetime.now(UTC)  # the time that the page names is now",
    "docs/read-models.md": "from tests.bank import Opened\nclass OwnerOf(Query[str]):\n    account: str\n"
    "class Largest(Query[list[tuple[str, int]]]):\n    pass\nclass Total(Query[int]):\n    pass",
}
"""What a page takes for granted."""

AFTERWARDS = {
    "docs/guarantees.md": "assert (await deposit(bank, 'bob', 17, 5)).version == 1\n"
    "assert (await deposit(bank, 'bob', 17, 5)).repeated",
    "docs/anchors.md": "new_key(Path('anchor.pem'))\nassert 'signature' in await anchored(bank, Path('anchor.pem'))",
    "docs/consistency.md": "assert rich == ['alice'] and balance == 10_005 and token",
    "docs/observing.md": "assert then.balance == 10_005",
    "docs/read-models.md": "balance = await bank.ask(BalancesV2, BalanceOf(account='alice'), after=receipt)\n"
    "assert balance == 1_000_500",
}
"""What a page's blocks come to by its text. Alice has 100 times 100, and 5 from a block of the page on consistency."""


class Enough(BaseException):
    """An endless block has used an event."""


def enough(*_: Any) -> Any:
    raise Enough


def code_of(source: str, where: str) -> CodeType:
    code: CodeType = compile(source, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


async def run(source: str, where: str, names: dict[str, Any]) -> None:
    waiting = eval(code_of(source, where), names)
    if inspect.iscoroutine(waiting):
        await waiting


async def run_block(block: Block, names: dict[str, Any]) -> None:
    if ENDLESS.search(block.code):
        used = {"print": names["print"], "send_mail": enough}
        names |= {"print": enough, "send_mail": enough}
        try:
            if "await " in block.code or "async for" in block.code:
                await asyncio.wait_for(run(block.code, str(block), names), 60)
            else:
                await asyncio.to_thread(exec, code_of(block.code, str(block)), names)
        except Enough:
            names |= used
        else:
            raise AssertionError(f"{block} has ended")
    elif "with BlockingRuntime(" in block.code:
        await asyncio.to_thread(exec, code_of(block.code, str(block)), names)
    else:
        await run(block.code, str(block), names)
    builtins.print("ran", block, flush=True)


async def run_page(page: str, bank: Runtime, receipt: Receipt) -> None:
    printed: list[str] = []
    names: dict[str, Any] = {
        "__name__": "__main__",
        **{name: getattr(rayfold, name) for name in rayfold.__all__},
        "print": lambda *values: printed.append(" ".join(map(str, values))),
    }
    names |= {name: globals()[name] for name in CLASSES} | {"bank": bank, "receipt": receipt}
    await run(SETUPS.get(page, ""), page, names)
    for block in blocks_of(ROOT / page):
        if block.language == "python" and not block.not_run:
            printed.clear()
            await run_block(block, names)
        elif block.language == "text" and page == "docs/testing.md":
            assert "\n".join(printed).rstrip() == block.code.rstrip(), (str(block), printed)
    await run(AFTERWARDS.get(page, ""), f"{page}, afterwards", names)


async def main(pages: list[str]) -> None:
    names = globals()
    exec(EXAMPLE, names)  # the classes of the bank, as classes of this program
    account, deposit = names["Account"], names["Deposit"]
    async with Runtime("bank-data", aggregates=[account], projections=[names["Balances"]], partitions=2) as bank:
        receipt = None
        for _ in range(100):
            receipt = await bank.execute(account, "alice", deposit(amount=100))
        many = (Envelope(account, f"{{{number}}}", deposit(amount=1)) for number in range(EVENTS))
        outcomes = [outcome async for _, outcome in bank.execute_all(many)]
        assert all(isinstance(outcome, Receipt) for outcome in outcomes)
        assert receipt is not None
        for page in pages:
            await run_page(page, bank, receipt)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
