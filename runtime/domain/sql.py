"""Sql: what a projection with `store=DuckDb()` runs its queries by, as `self.sql`.

Beside step [7] of the read path. `runtime/read/stores/duckdb.py` hands it to the projection when the store is opened;
the class lies here, since the class line of a projection and its annotations name it. It imports no duckdb.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Sql"]


class Sql:
    """How handlers and answers run SQL: `self.sql("SELECT ... WHERE airport = ?", ["JFK"]).fetchall()`."""

    given_by_a_store = True
    """An attribute that is annotated with this class is not a field of the projection."""

    def __init__(self, run: Callable[[str, Callable[[Any], Any]], Any]) -> None:
        """`run` executes a statement on the connection, in the present transaction; errors name the query."""
        self._run = run

    def __call__(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        """Run it in the present transaction, after the rows appended so far. DuckDB's result: `fetchone()`,
        `fetchall()`. Raises what DuckDB raises."""
        return self._run(query, lambda connection: connection.execute(query, list(parameters)))

    def arrow(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        """The result of a query as a `pyarrow.Table`, without a Python object for each value. Needs pyarrow."""
        return self._run(query, lambda one: one.sql(query, params=list(parameters)).to_arrow_table())

    def df(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        """The result of a query as a pandas `DataFrame`. Needs pandas."""
        return self._run(query, lambda one: one.sql(query, params=list(parameters)).df())
