"""The ledger: what each command was told, by its number in the feed.

Rule kept here: one line for each command, and a receipt is never overwritten by anything else. What the log is held
against at the end is what the callers were told, not what the runtime thinks it did.
"""

from __future__ import annotations

from array import array
from collections import Counter

from rayfold import RayfoldError, Receipt, Rejected, Unavailable

__all__ = ["Ledger"]

_NOTHING = 0


class Ledger:
    """Room for what `commands` commands are told. About 20 bytes a command, so that a year fits."""

    def __init__(self, commands: int) -> None:
        self.partition = array("i", bytes(4 * commands))
        """Where the receipts say the events are; meaningless where `position` is 0."""
        self.position = array("q", bytes(8 * commands))
        self.version = array("q", bytes(8 * commands))
        self.streams: list[str] = [""] * commands
        self.told = 0
        """How many commands have an answer that settles them."""
        self.accepted = 0
        self.repeated = 0
        """How many of the accepted were stored by an earlier run, or by an earlier try whose answer was lost."""
        self.rejected: dict[int, str] = {}
        """The reason, by the number of the command."""
        self.unanswered: list[int] = []
        """Commands of which nobody knows whether they happened: they are sent again under the same id."""
        self.failures: list[str] = []
        """Answers that no flight should get, the first few in words."""

    def note(self, number: int, outcome: Receipt | RayfoldError) -> None:
        """Write down what the command of this number was told."""
        if isinstance(outcome, Unavailable):
            self.unanswered.append(number)
            return
        self.told += 1
        if isinstance(outcome, Receipt):
            self._accept(number, outcome)
        elif isinstance(outcome, Rejected):
            self.rejected[number] = outcome.reason
        else:
            self.failures.append(str(outcome))

    @property
    def rejected_by_reason(self) -> dict[str, int]:
        """How often each reason was told, the most frequent first."""
        return dict(Counter(self.rejected.values()).most_common())

    def take_unanswered(self) -> list[int]:
        """The commands to send again, in their order; the list begins anew."""
        numbers, self.unanswered = self.unanswered, []
        return numbers

    def _accept(self, number: int, receipt: Receipt) -> None:
        assert self.position[number] == _NOTHING, f"command {number} was answered twice"
        self.partition[number] = receipt.partition
        self.position[number] = receipt.position
        self.version[number] = receipt.version
        self.streams[number] = str(receipt.stream)
        self.accepted += 1
        self.repeated += receipt.repeated
