"""The agenda does what a dictionary of deadlines does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsvpn.gateway.agenda import Agenda


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 20)))))
def test_like_a_dictionary(steps: list[tuple[int, int | None]]) -> None:
    agenda: Agenda[int] = Agenda()
    model: dict[int, float] = {}
    for now, (thing, due) in enumerate(steps):
        if due is None:
            assert agenda.pop(thing) == model.pop(thing, None)
        else:
            agenda[thing] = model[thing] = float(due)
        assert agenda.next() == min(model.values(), default=None)
        assert sorted(agenda.due(now)) == sorted(one for one, at in model.items() if at <= now)
        assert len(agenda) == len(model)
        assert (thing in agenda) == (thing in model)


def test_setdefault_keeps_the_earlier_time() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.setdefault("a", 1.0)
    agenda.setdefault("a", 5.0)
    assert agenda.next() == 1.0


def test_the_heap_stays_small_when_one_thing_moves_often() -> None:
    agenda: Agenda[str] = Agenda()
    for time in range(10_000):
        agenda["a"] = float(time)
    assert len(agenda._heap) < 200
    assert agenda.due(1e9) == ["a"]


def test_what_is_due_is_taken_off_one_by_one() -> None:
    agenda: Agenda[str] = Agenda()
    for thing, due in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 9.0)):
        agenda[thing] = due
    taken = []
    for thing in agenda.take_due(5.0):
        taken.append(thing)
        assert thing not in agenda
        # What was settled with the first is not due any more.
        agenda.pop("b")
    assert taken == ["a", "c"]
    assert list(agenda) == ["d"]
