"""Routes: which part of a divided projection a query goes to, and one answer from those of all parts.

Beside step [8], in the caller's process. `key=` and `merge=` are code of the user's: what they raise is raised in the
caller of the query, by name, and ends nothing else.
"""

from __future__ import annotations

from typing import Any

from ..domain.messages import Query
from ..domain.projection import Projection, Route, part_of
from ..errors import HandlerFailed
from ..user_code import is_ctrl_c

__all__ = ["merged_answer", "part_asked"]


def part_asked(projection: type[Projection], query: Query[Any], parts: int) -> int | None:
    """The part that a query is for; None if it is for all of them. Raises `HandlerFailed`."""
    route = projection.answer_routes.get(type(query), Route())
    if parts == 1:
        return 0
    if route.merge is not None:
        return None
    if route.key is None:
        return 0  # which does not know the query, and raises that
    try:
        return part_of(route.key(query), parts)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        raise HandlerFailed.caused_by(f"{projection.__name__} @answer(key=...)", query.message_name, error) from error


def merged_answer(projection: type[Projection], query: Query[Any], answers: list[Any]) -> Any:
    """The answers of all parts, in their order, as one. Raises `HandlerFailed`."""
    merge = projection.answer_routes[type(query)].merge
    assert merge is not None  # `part_asked` sends it to all parts only then
    try:
        return merge(answers)
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        raise HandlerFailed.caused_by(f"{projection.__name__} @answer(merge=...)", query.message_name, error) from error
