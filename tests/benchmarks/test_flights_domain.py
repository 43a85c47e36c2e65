"""The rules of airports and aircraft, one by one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rayfold import Ended, Send, Wake, given, on
from rayfold.benchmarks.flights.compensation import (
    AUTHORITY,
    PAYMENTS_MAX,
    Authority,
    Claim,
    Fund,
    Note,
    Noted,
    Opened,
    Paid,
    Pay,
)
from rayfold.benchmarks.flights.domain import (
    Aircraft,
    Airport,
    Cancel,
    Cancelled,
    Depart,
    Departed,
    Land,
    LandAfterDiversion,
    Landed,
    LandedAfterDiversion,
    TakeOff,
    TookOff,
)
from rayfold.benchmarks.flights.figures import (
    AircraftFigures,
    AirportHours,
    CarrierFigures,
    Distances,
    FarthestAircraft,
    HourFigures,
    HoursOf,
    MilesOf,
    Punctuality,
    PunctualityOf,
    RouteFigures,
    Routes,
    RoutesFrom,
)

DAY = 24 * 60
NOON = 10 * DAY + 720
FLIGHT = "2013-01-01 UA1"
OTHER = "2013-01-01 UA2"


def depart(flight: str = FLIGHT, scheduled_min: int = NOON, at_min: int = NOON) -> Depart:
    return Depart(flight=flight, carrier="UA", aircraft="N1", scheduled_min=scheduled_min, hour=12, at_min=at_min)


def departed(flight: str = FLIGHT, scheduled_min: int = NOON, at_min: int = NOON) -> Departed:
    fields = depart(flight, scheduled_min, at_min).model_dump()
    return Departed(**fields, late_min=at_min - scheduled_min)


def cancel(flight: str = FLIGHT, at_min: int = NOON) -> Cancel:
    return Cancel(flight=flight, carrier="UA", scheduled_min=NOON, hour=12, at_min=at_min)


def cancelled(flight: str = FLIGHT, at_min: int = NOON) -> Cancelled:
    return Cancelled(**cancel(flight, at_min).model_dump())


def take_off(flight: str = FLIGHT, at_min: int = NOON, miles: int = 640, due_min: int = NOON + 120) -> TakeOff:
    return TakeOff(
        flight=flight,
        carrier="UA",
        origin="EWR",
        destination="ORD",
        distance_miles=miles,
        due_min=due_min,
        at_min=at_min,
    )


def took_off(flight: str = FLIGHT, at_min: int = NOON, miles: int = 640) -> TookOff:
    return TookOff(**take_off(flight, at_min, miles).model_dump())


def land(flight: str = FLIGHT, at_min: int = NOON + 130, airborne_min: int = 100) -> Land:
    return Land(flight=flight, airborne_min=airborne_min, at_min=at_min)


def landed(flight: str = FLIGHT, at_min: int = NOON + 130, airborne_min: int = 100) -> Landed:
    return Landed(
        flight=flight,
        carrier="UA",
        origin="EWR",
        destination="ORD",
        distance_miles=640,
        airborne_min=airborne_min,
        late_min=at_min - NOON - 120,
        at_min=at_min,
    )


def diverted(at_min: int = NOON + 300) -> LandedAfterDiversion:
    return LandedAfterDiversion(flight=FLIGHT, carrier="UA", origin="EWR", destination="ORD", at_min=at_min)


class TestAirport:
    def test_a_flight_departs_with_its_delay(self) -> None:
        given(Airport).when(depart(at_min=NOON + 40)).then(departed(at_min=NOON + 40)).then_state(clock_min=NOON + 40)

    def test_a_flight_may_leave_twenty_minutes_early(self) -> None:
        given(Airport).when(depart(at_min=NOON - 20)).then(departed(at_min=NOON - 20))

    def test_a_flight_does_not_leave_its_passengers_behind(self) -> None:
        given(Airport).when(depart(at_min=NOON - 21)).rejected("left_too_early", flight=FLIGHT, early_min=21)

    def test_a_flight_departs_once(self) -> None:
        given(Airport, departed()).when(depart(at_min=NOON + 5)).rejected("departed_already", flight=FLIGHT)

    def test_a_flight_that_departed_is_not_cancelled(self) -> None:
        given(Airport, departed()).when(cancel(at_min=NOON + 5)).rejected("departed_already", flight=FLIGHT)

    def test_a_cancelled_flight_does_not_depart(self) -> None:
        given(Airport, cancelled()).when(depart(at_min=NOON + 5)).rejected("cancelled_already", flight=FLIGHT)

    def test_a_flight_is_cancelled_once(self) -> None:
        given(Airport).when(cancel()).then(cancelled()).when(cancel()).rejected("cancelled_already", flight=FLIGHT)

    def test_two_flights_may_leave_in_one_minute(self) -> None:
        given(Airport, departed()).when(depart(OTHER)).then(departed(OTHER))

    @pytest.mark.parametrize("late", [depart(OTHER, at_min=NOON - 1), cancel(OTHER, at_min=NOON - 1)])
    def test_time_does_not_run_backwards_at_an_airport(self, late: Depart | Cancel) -> None:
        facts = {"flight": OTHER, "at_min": NOON - 1, "clock_min": NOON}
        given(Airport, departed()).when(late).rejected("time_ran_backwards", **facts)

    def test_nothing_leaves_a_day_late_under_its_old_number(self) -> None:
        given(Airport).when(depart(at_min=NOON + DAY)).then(departed(at_min=NOON + DAY))
        refused = given(Airport).when(depart(at_min=NOON + DAY + 1))
        refused.rejected("too_late_for_its_day", flight=FLIGHT, late_min=DAY + 1)

    def test_an_airport_remembers_days_and_not_years(self) -> None:
        days = [departed(f"day {day}", day * DAY, day * DAY + 5) for day in range(100)]
        remembered = given(Airport, *days)
        remembered.then_state(departed={98: {"day 98"}, 99: {"day 99"}})

    @pytest.mark.parametrize("late_min", [0, 300, DAY])
    def test_what_an_airport_has_forgotten_cannot_depart_again(self, late_min: int) -> None:
        for later_min in range(late_min, 4 * DAY, 60):
            history = [departed(at_min=NOON + late_min), departed(OTHER, NOON + later_min, NOON + later_min)]
            given(Airport, *history).when(depart(at_min=NOON + later_min)).rejected(
                "departed_already" if later_min <= DAY else "too_late_for_its_day",
                flight=FLIGHT,
                **({} if later_min <= DAY else {"late_min": later_min}),
            )


class TestAircraft:
    def test_it_takes_off_and_lands(self) -> None:
        given(Aircraft).when(take_off()).then(took_off()).when(land()).then(landed()).then_state(flight="")

    def test_it_is_not_in_two_places_in_the_air(self) -> None:
        refused = given(Aircraft, took_off()).when(take_off(OTHER, NOON + 60))
        refused.rejected("still_in_the_air", flight=FLIGHT, since_min=NOON)

    def test_one_that_nobody_heard_of_for_a_day_has_landed(self) -> None:
        given(Aircraft, took_off()).when(take_off(OTHER, NOON + DAY)).then(took_off(OTHER, NOON + DAY))

    def test_it_is_not_in_two_places_on_the_ground(self) -> None:
        back_min = NOON + 130 + 20 + 60  # landed, turned around, 640 miles at 640 mph
        refused = given(Aircraft, took_off(), landed()).when(take_off(OTHER, back_min - 1))
        refused.rejected("not_back_yet", missing_min=1)
        given(Aircraft, took_off(), landed()).when(take_off(OTHER, back_min)).then(took_off(OTHER, back_min))

    def test_a_mile_more_takes_a_minute_more(self) -> None:
        history = (took_off(miles=641), landed())
        given(Aircraft, *history).when(take_off(OTHER, NOON + 210)).rejected("not_back_yet", missing_min=1)

    def test_a_flight_that_never_took_off_does_not_land(self) -> None:
        given(Aircraft).when(land()).rejected("did_not_take_off", flight=FLIGHT, in_the_air_with="")

    def test_it_lands_from_the_flight_it_took_off_with(self) -> None:
        refused = given(Aircraft, took_off()).when(land(OTHER))
        refused.rejected("did_not_take_off", flight=OTHER, in_the_air_with=FLIGHT)

    def test_it_lands_once(self) -> None:
        refused = given(Aircraft, took_off(), landed()).when(land())
        refused.rejected("did_not_take_off", flight=FLIGHT, in_the_air_with="")

    def test_nobody_is_in_the_air_for_longer_than_the_flight_took(self) -> None:
        refused = given(Aircraft, took_off()).when(land(at_min=NOON + 90, airborne_min=91))
        refused.rejected("landed_too_soon", flight=FLIGHT, airborne_min=91)

    def test_no_airliner_is_faster_than_640_mph(self) -> None:
        refused = given(Aircraft, took_off()).when(land(airborne_min=59))
        refused.rejected("faster_than_airliners", flight=FLIGHT, airborne_min=59)
        given(Aircraft, took_off()).when(land(airborne_min=60)).then(landed(airborne_min=60))

    def test_it_lands_after_a_diversion_without_a_time_in_the_air(self) -> None:
        command = LandAfterDiversion(flight=FLIGHT, at_min=NOON + 300)
        given(Aircraft, took_off()).when(command).then(diverted()).then_state(flight="", clock_min=NOON + 300)

    @pytest.mark.parametrize(
        "early", [take_off(OTHER, NOON - 1), land(at_min=NOON - 1), LandAfterDiversion(flight=FLIGHT, at_min=NOON - 1)]
    )
    def test_time_does_not_run_backwards_for_an_aircraft(self, early: TakeOff | Land | LandAfterDiversion) -> None:
        refused = given(Aircraft, took_off()).when(early)
        refused.rejected("time_ran_backwards", at_min=NOON - 1, clock_min=NOON)


class TestFigures:
    def test_punctuality_counts_a_flight_as_late_from_fifteen_minutes_on(self) -> None:
        history = [departed(at_min=NOON + 14), departed(OTHER, at_min=NOON + 15), cancelled("c"), landed(), diverted()]
        expected = CarrierFigures("UA", 2, 1, 29, cancelled=1, landed=1, landed_late=0, arrival_late_min=10, diverted=1)
        placed = [on("any", event) for event in history]
        case = given(Punctuality, *placed).ask(PunctualityOf(carrier="UA")).answers(expected)
        case.ask(PunctualityOf(carrier="none")).answers(CarrierFigures("none"))

    def test_routes_know_the_fastest_and_the_slowest_flight(self) -> None:
        history = [on("N1", landed(airborne_min=minutes)) for minutes in (100, 90, 110)]
        expected = RouteFigures("EWR", "ORD", 640, 3, 300, 90, 110, diverted=1)
        given(Routes, *history, on("N1", diverted())).ask(RoutesFrom(origin="EWR")).answers((expected,))

    def test_hours_belong_to_the_airport_that_told_of_them(self) -> None:
        history = [on("EWR", departed(at_min=NOON + 15)), on("LGA", departed()), on("EWR", cancelled(OTHER))]
        expected = HourFigures("EWR", 12, departed=1, departed_late=1, departure_late_min=15, cancelled=1)
        given(AirportHours, *history).ask(HoursOf(airport="EWR")).answers((expected,))

    def test_distances_belong_to_the_aircraft_that_landed(self) -> None:
        history = [on("N1", landed()), on("N2", landed()), on("N1", landed())]
        case = given(Distances, *history).ask(MilesOf(aircraft="N1")).answers(AircraftFigures("N1", 2, 1280, 200))
        case.ask(FarthestAircraft(limit=1)).answers((AircraftFigures("N1", 2, 1280, 200),))


# --- what three hours late leads to ----------------------------------------------------------------------------------


def three_hours_late(late_min: int = 180) -> Landed:
    return landed().model_copy(update={"late_min": late_min})


CLAIM = f"{FLIGHT} EWR"


class TestClaim:
    def test_three_hours_late_opens_a_claim_that_is_paid_when_no_objection_comes(self) -> None:
        opened, objection = Opened(carrier="UA", late_min=180), Wake("objection", after=timedelta(seconds=1))
        case = given(Claim).when(three_hours_late()).then(opened, objection)
        paid = case.later(seconds=1).then(Send(Fund, "UA", Pay(claim=CLAIM)))
        paid.when_accepted(Pay).then(Ended("paid"))

    def test_less_than_that_does_not(self) -> None:
        given(Claim).when(three_hours_late(179)).then_nothing()

    def test_what_a_fund_cannot_pay_is_noted(self) -> None:
        undisputed = given(Claim, three_hours_late()).later(seconds=1).then(Send(Fund, "UA", Pay(claim=CLAIM)))
        note = Send(Authority, AUTHORITY, Note(claim=CLAIM, carrier="UA"))
        owed = undisputed.when_refused(Pay, "fund_is_spent").then(note)
        owed.when_accepted(Note).then(Ended("owed"))

    def test_a_fund_pays_until_it_is_spent(self) -> None:
        payments = [Paid(claim=str(number)) for number in range(PAYMENTS_MAX)]
        given(Fund, *payments[1:]).when(Pay(claim="0")).then(Paid(claim="0"))
        given(Fund, *payments).when(Pay(claim="x")).rejected("fund_is_spent")

    def test_the_authority_notes_all(self) -> None:
        given(Authority).when(Note(claim="x", carrier="UA")).then(Noted(claim="x", carrier="UA"))
