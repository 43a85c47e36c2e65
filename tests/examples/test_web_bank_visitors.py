"""The web service and what a visitor may send it by mistake or on purpose."""

from __future__ import annotations

import pytest
from fastapi import HTTPException, Response

from examples import web_bank
from examples.bank import Account, Balances, Deposit
from rayfold.testing import system


@pytest.mark.parametrize(("account", "amount"), [("i" * 500, 1), ("ada", 2**70)])
async def test_what_a_visitor_cannot_send_is_no_error_of_the_server(
    monkeypatch: pytest.MonkeyPatch, account: str, amount: int
) -> None:
    async with system(Account, Balances) as running:
        monkeypatch.setattr(web_bank, "runtime", running)
        with pytest.raises(HTTPException) as told:
            await web_bank.deposit(account, web_bank.Money(amount=amount), Response())
        assert told.value.status_code == 422


async def test_a_cookie_that_is_no_token_begins_a_new_session(monkeypatch: pytest.MonkeyPatch) -> None:
    async with system(Account, Balances) as running, system(Account, Balances) as other:
        other_session = other.session()
        await other_session.execute(Account, "ada", Deposit(amount=5))
        await running.execute(Account, "ada", Deposit(amount=5))
        monkeypatch.setattr(web_bank, "runtime", running)
        for token in ("garbage", "", other_session.token()):
            answer = Response()
            assert (await web_bank.balance("ada", answer, token))["balance"] >= 0
            assert "token=" in answer.headers["set-cookie"]
