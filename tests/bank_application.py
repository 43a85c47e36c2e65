"""The bank as an application, for `rayfold run`."""

from __future__ import annotations

from rayfold import Application
from tests.bank import Account, Balances, Turnover, Vault

bank = Application("bank", aggregates=[Account, Vault], projections=[Balances, Turnover])
