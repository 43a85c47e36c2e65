"""A web service with several workers on one store: `uvicorn examples.web_bank:web --workers 2`.

The first worker starts a process that runs the system (`linger=True`); each worker is a client of it. What a visitor
has written in one request is seen in the next one, whichever worker answers: the session's token travels in a cookie.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Cookie, FastAPI, HTTPException, Response
from pydantic import BaseModel, PositiveInt

from examples.bank import Account, BalanceOf, Balances, Deposit
from rayfold import (
    Application,
    InvalidId,
    InvalidMessage,
    Overloaded,
    Rejected,
    Runtime,
    Session,
    StoreMismatch,
    Unavailable,
)

bank = Application("web-bank", aggregates=[Account], projections=[Balances])
runtime = Runtime(os.environ.get("BANK_DATA", "bank-data"), bank, linger=True)


@asynccontextmanager
async def running(_: FastAPI) -> AsyncIterator[None]:
    async with runtime:
        yield


web = FastAPI(lifespan=running)

Token = Annotated[str | None, Cookie()]


class Money(BaseModel):
    amount: PositiveInt


def session(token: str | None) -> Session:
    """The visitor's session; a new one for a cookie that is no token of this store."""
    try:
        return runtime.session(token)
    except (InvalidMessage, StoreMismatch):
        return runtime.session()


@web.post("/accounts/{account}/deposits")
async def deposit(account: str, money: Money, response: Response, token: Token = None) -> dict[str, int]:
    me = session(token)
    try:
        receipt = await me.execute(Account, account, Deposit(amount=money.amount))
    except (InvalidId, InvalidMessage) as wrong:
        raise HTTPException(422, str(wrong)) from None
    except Rejected as refused:
        raise HTTPException(409, str(refused)) from None
    except (Unavailable, Overloaded) as away:
        raise HTTPException(503, str(away)) from None
    response.set_cookie("token", me.token(), httponly=True)
    return {"version": receipt.version, "worker": os.getpid()}


@web.get("/accounts/{account}")
async def balance(account: str, response: Response, token: Token = None) -> dict[str, int]:
    me = session(token)
    try:
        found = await me.ask(Balances, BalanceOf(account=account))
    except (InvalidId, InvalidMessage) as wrong:
        raise HTTPException(422, str(wrong)) from None
    except Unavailable as away:
        raise HTTPException(503, str(away)) from None
    response.set_cookie("token", me.token(), httponly=True)
    return {"balance": found, "worker": os.getpid()}


@web.get("/healthz")
async def health(response: Response) -> dict[str, object]:
    found = await runtime.health()
    response.status_code = 200 if found.ok else 503
    return found._asdict()
