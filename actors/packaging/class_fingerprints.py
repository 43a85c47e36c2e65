"""Class fingerprints: whether two programs have the same code of an application's classes, by texts that both can send.

Beside all steps. A program that connects to a system uses classes of its own, while those of the system decide and
answer. Both make the fingerprints of theirs, and the program compares them (`../system/connected.py`).

Compared are which aggregates and projections both have, and of those: the code, with the handlers that decide and
answer; and the names of the fields of their commands and queries. Python of another version compiles the same code to
other bytes: then the fields alone are compared.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.fingerprint import fingerprint_of, state_fingerprint
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import failure_text
from ...runtime.printable import printable_log
from ...runtime.user_code import is_ctrl_c

__all__ = ["class_fingerprints", "differing"]

log = printable_log(__name__)

_PYTHON: Final = "python"
_CODE: Final = "code "
_FIELDS: Final = "fields "


def class_fingerprints(catalogue: Catalogue) -> dict[str, str]:
    """The fingerprints of these classes. It takes milliseconds; the first time for a class, it walks its code."""
    found = {_PYTHON: f"{sys.implementation.cache_tag}"}
    for kind, aggregate in catalogue.aggregates.items():
        found.update(_of_class(kind, aggregate, partial(state_fingerprint, aggregate), aggregate.deciders))
    for kind, projection in catalogue.projections.items():
        found.update(_of_class(kind, projection, partial(catalogue.fingerprint, projection), projection.answers))
    return found


def differing(own: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """What differs of these classes, and which of them the others lack, as texts; empty if nothing does, or `others`
    are not known."""
    both = [name for name in own if name in others and own[name] != others[name]]
    found = [
        f"{name.removeprefix(_FIELDS)} has the fields {own[name]} here, and {others[name]} there"
        for name in both
        if name.startswith(_FIELDS)
    ]
    if _PYTHON not in both:
        code = sorted(name.removeprefix(_CODE) for name in both if name.startswith(_CODE))
        found[:0] = [f"the code of {', '.join(code)}"] if code else []
    if others and (lacking := sorted(_described(own) - _described(others))):
        found.append(f"there is no {', '.join(lacking)} there")
    return found


def _described(fingerprints: Mapping[str, str]) -> set[str]:
    """The names of the aggregates and projections."""
    return {one.removeprefix(_CODE).rpartition(" of ")[2] for one in fingerprints if one != _PYTHON}


def _of_class(
    name: str, cls: type[Aggregate] | type[Projection], of_state: Callable[[], bytes], handlers: Mapping[Any, Any]
) -> Iterator[tuple[str, str]]:
    """Of its code, that which changes the state and that which decides or answers; and of each of its messages."""
    for message in handlers:
        fields = ", ".join(sorted(message.model_fields)) or "none"
        yield f"{_FIELDS}{message.message_name} of {name}", fields
    try:
        digests = [of_state().hex()]
        for message, handler in handlers.items():
            function = getattr(handler, "function", handler)
            digests += [fingerprint_of(one, cls.__module__).hex() for one in (message, function)]
    except BaseException as error:  # a class of the application's may raise anything when it is described
        if is_ctrl_c(error):
            raise
        log.info("the code of %s cannot be compared with that of other programs: %s", name, failure_text(error))
    else:
        yield f"{_CODE}{name}", hashlib.blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()
