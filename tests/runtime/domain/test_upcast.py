"""Upcasting: a complete chain from version 1, checked when the class is defined."""

from __future__ import annotations

from typing import Any

import pytest

from rayfold.runtime.domain.messages import Event, Payload
from rayfold.runtime.domain.upcast import upcast, upcasted
from rayfold.runtime.errors import DefinitionError


class Measured(Event, version=3):
    """Version 1 was in inches, version 2 in centimetres without a unit."""

    size: float
    unit: str

    @staticmethod
    @upcast(from_version=1)
    def to_centimetres(old: Payload) -> Payload:
        return {"size": old["inches"] * 2.54}

    @upcast(from_version=2)
    @staticmethod
    def name_the_unit(old: Payload) -> Payload:
        return {**old, "unit": "cm"}


def test_each_version_goes_through_every_later_upcaster() -> None:
    assert upcasted(Measured, {"inches": 2.0}, 1) == [{"size": 5.08, "unit": "cm"}]
    assert upcasted(Measured, {"size": 1.0}, 2) == [{"size": 1.0, "unit": "cm"}]
    assert upcasted(Measured, {"size": 1.0, "unit": "m"}, 3) == [{"size": 1.0, "unit": "m"}]


def test_an_upcaster_stays_an_ordinary_function() -> None:
    assert Measured.name_the_unit({"size": 1}) == {"size": 1, "unit": "cm"}


def test_a_missing_upcaster_is_named_with_its_version() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Fact(Event, version=3):
            @staticmethod
            @upcast(from_version=1)
            def first(old: Payload) -> Payload:
                return old

    assert str(caught.value) == (
        "Fact: nothing upcasts its version 2 to version 3; add a static method marked @upcast(from_version=2)"
    )


def test_two_upcasters_from_one_version_are_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Fact(Event, version=2):
            @staticmethod
            @upcast(from_version=1)
            def first(old: Payload) -> Payload:
                return old

            @staticmethod
            @upcast(from_version=1)
            def second(old: Payload) -> Payload:
                return old

    assert str(caught.value) == "Fact.second: first already upcasts from version 1; keep one of them"


def test_an_upcaster_from_the_present_version_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Fact(Event):
            @staticmethod
            @upcast(from_version=1)
            def first(old: Payload) -> Payload:
                return old

    assert str(caught.value) == (
        "Fact.first: it upcasts from version 1, but the class is at version 1; give version=2 in the class line"
    )


def test_an_upcaster_that_takes_self_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Fact(Event, version=2):
            @upcast(from_version=1)
            def first(self, old: Payload) -> Payload:
                return old

    assert str(caught.value) == (
        "Fact.first: an upcaster takes the old payload and nothing else; make it a @staticmethod"
    )


@pytest.mark.parametrize("version", [0, -1, True, "2"])
def test_a_version_counts_from_1(version: Any) -> None:
    with pytest.raises(DefinitionError, match=f"@upcast: from_version={version!r} is not a schema version; count"):
        upcast(from_version=version)
    with pytest.raises(DefinitionError, match=f"Fact: version={version!r} is not a schema version; count from 1"):

        class Fact(Event, version=version):
            pass
