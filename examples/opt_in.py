"""An opt-in by e-mail: a token is sent, and expires after 60 minutes unless it is confirmed.

An ordinary aggregate with a consequence and a timer: `Send` and `Wake` beside its event. Its rules are tested without
Ray, disk or clock, at the end.
"""

from collections.abc import Iterator
from datetime import timedelta

from rayfold import (
    Aggregate,
    Command,
    Event,
    Forget,
    Rejected,
    Send,
    Shared,
    Wake,
    decide,
    evolve,
    given,
    woken,
)
from rayfold.testing import system_blocking


class Deliver(Command):
    text: str


class Delivered(Event):
    text: str


class Mailbox(Aggregate, placement=Shared()):
    letters: list[str] = []

    @decide
    def deliver(self, command: Deliver) -> Delivered:
        return Delivered(text=command.text)

    @evolve
    def delivered(self, event: Delivered) -> None:
        self.letters.append(event.text)


class Request(Command):
    token: str


class Confirm(Command):
    token: str


class Requested(Event):
    token: str


class Confirmed(Event):
    pass


class Expired(Event):
    pass


class OptIn(Aggregate, placement=Shared()):
    """One e-mail address."""

    token: str = ""
    confirmed: bool = False

    @decide
    def request(self, command: Request) -> Iterator[Requested | Send | Wake]:
        yield Requested(token=command.token)
        yield Send(Mailbox, self.id, Deliver(text=f"your token is {command.token}"))
        yield Wake("expired", after=timedelta(minutes=60))

    @decide
    def confirm(self, command: Confirm) -> Iterator[Confirmed | Forget | Rejected]:
        if not self.token or command.token != self.token:
            yield Rejected("no_such_token")
        yield Confirmed()
        yield Forget("expired")

    @woken("expired")
    def expired(self) -> Expired:
        return Expired()

    @evolve
    def was_requested(self, event: Requested) -> None:
        self.token = event.token

    @evolve
    def was_confirmed(self, event: Confirmed) -> None:
        self.confirmed = True

    @evolve
    def has_expired(self, event: Expired) -> None:
        self.token = ""


def test_a_request_sends_the_token_and_arms_the_timer() -> None:
    given(OptIn, id="ada@example.org").when(Request(token="7")).then(
        Requested(token="7"),
        Send(Mailbox, "ada@example.org", Deliver(text="your token is 7")),
        Wake("expired", after=timedelta(minutes=60)),
    )


def test_a_confirmed_token_does_not_expire() -> None:
    given(OptIn, Requested(token="7")).when(Confirm(token="7")).then(Confirmed(), Forget("expired"))


def test_a_token_that_has_expired_cannot_be_confirmed() -> None:
    given(OptIn, Requested(token="7")).woken("expired").then(Expired()).when(Confirm(token="7")).rejected(
        "no_such_token"
    )


def test_a_token_expires_after_60_minutes() -> None:
    with system_blocking(OptIn, Mailbox) as letters:
        letters.execute(OptIn, "ada@example.org", Request(token="7"))
        assert letters.state_at(Mailbox, "ada@example.org").letters == ["your token is 7"]
        letters.clock.advance(timedelta(minutes=59))
        assert letters.state_at(OptIn, "ada@example.org").token == "7"
        letters.clock.advance(timedelta(minutes=1))
        assert letters.state_at(OptIn, "ada@example.org").token == ""


if __name__ == "__main__":
    for test in [value for name, value in sorted(globals().items()) if name.startswith("test_")]:
        test()
