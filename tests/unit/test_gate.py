"""Many together or one alone, with real threads."""

import random
import threading

import pytest

from worker.gate import Gate

SOON_S = 120
# Long enough for a thread that may enter to have entered; shorter only hides a fault, it never reports one.
A_WHILE_S = 0.1


class Visitor:
    """A thread that enters `way` of the gate, stays until told to `go`, and notes when it came."""

    def __init__(self, enter, came=None):
        self.inside, self._go = threading.Event(), threading.Event()
        self._enter, self._came = enter, came if came is not None else []
        self._thread = threading.Thread(target=self._visit, daemon=True)
        self._thread.start()

    def _visit(self):
        with self._enter():
            self._came.append(self)
            self.inside.set()
            self._go.wait(SOON_S)

    def leave(self):
        self._go.set()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()


def until_somebody_waits(gate):
    """Until the next to come would have to wait: nothing outside tells."""
    ends = threading.Event()
    while not gate._alone.locked():  # noqa: SLF001
        ends.wait(0.001)


def test_many_are_inside_together():
    gate, met = Gate(), threading.Barrier(4)

    def visit():
        with gate.together():
            met.wait(SOON_S)

    threads = [threading.Thread(target=visit, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    met.wait(SOON_S)
    for thread in threads:
        thread.join(SOON_S)


@pytest.mark.parametrize("way", ["together", "alone"])
def test_nobody_enters_while_one_is_alone(way):
    gate = Gate()
    with gate.alone():
        late = Visitor(getattr(gate, way))
        assert not late.inside.wait(A_WHILE_S)
    assert late.inside.wait(SOON_S)
    late.leave()


def test_one_alone_waits_for_all_those_inside():
    gate = Gate()
    inside = [Visitor(gate.together) for _ in range(3)]
    for visitor in inside:
        assert visitor.inside.wait(SOON_S)
    alone = Visitor(gate.alone)
    for visitor in inside:
        assert not alone.inside.wait(A_WHILE_S)
        visitor.leave()
    assert alone.inside.wait(SOON_S)
    alone.leave()


def test_nobody_enters_while_one_waits_to_be_alone():
    """Else a stream of others would keep it out for ever."""
    gate, came = Gate(), []
    first = Visitor(gate.together, came)
    assert first.inside.wait(SOON_S)
    alone = Visitor(gate.alone, came)
    until_somebody_waits(gate)
    last = Visitor(gate.together, came)
    assert not last.inside.wait(A_WHILE_S)
    first.leave()
    assert alone.inside.wait(SOON_S)
    assert not last.inside.wait(A_WHILE_S)
    alone.leave()
    assert last.inside.wait(SOON_S)
    last.leave()
    assert came == [first, alone, last]


@pytest.mark.parametrize("way", ["together", "alone"])
def test_an_exception_inside_leaves_the_gate_as_it_was(way):
    gate = Gate()
    with pytest.raises(LookupError), getattr(gate, way)():
        raise LookupError
    alone = Visitor(gate.alone)
    assert alone.inside.wait(SOON_S)
    alone.leave()
    together = Visitor(gate.together)
    assert together.inside.wait(SOON_S)
    together.leave()


def test_under_stress_one_alone_is_always_alone_and_all_get_their_turn():
    gate, noted, seen = Gate(), threading.Lock(), []
    inside = {"together": 0, "alone": 0}
    visits, threads = 150, 12

    def visit(seed):
        ways = random.Random(seed).choices(["together", "alone"], weights=[4, 1], k=visits)  # noqa: S311  # no secret
        for way in ways:
            with getattr(gate, way)():
                with noted:
                    inside[way] += 1
                    seen.append(dict(inside))
                threading.Event().wait(0.0001)
                with noted:
                    inside[way] -= 1

    running = [threading.Thread(target=visit, args=(seed,), daemon=True) for seed in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(SOON_S)
    assert len(seen) == visits * threads
    assert all(now["alone"] == 0 or now == {"together": 0, "alone": 1} for now in seen)
    assert max(now["together"] for now in seen) > 1
