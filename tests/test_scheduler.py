"""Scheduler: which samples go into which batch, against a model that takes them one by one."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rsfast.engine.scheduler import Scheduler


def samples(segments):
    """Each sample of the segments: of which input, of which piece, which of the piece's."""
    return [(each.active.number, each.piece, k) for each in segments for k in range(each.start, each.stop)]


def schedule(pieces, places=4, *, early=False, waits=False):
    return Scheduler(pieces, places, early=early, waits=waits)


def filled(the, size, inputs=100):
    """What `fill` returns where there are `inputs` inputs."""
    return samples(the.fill(size, lambda active: active.number < inputs))


class SchedulerMachine(RuleBasedStateMachine):
    """Call a Scheduler in any order, and take from each input one sample after another, as its documentation says."""

    @initialize(
        pieces=st.lists(st.integers(1, 12), min_size=2, max_size=6),
        places=st.integers(1, 6),
        inputs=st.integers(1, 12),
        early=st.booleans(),
        waits=st.booleans(),
    )
    def begin(self, pieces, places, inputs, early, waits):
        self.pieces, self.scheduler = pieces, schedule(pieces, places, early=early, waits=waits)
        self.samples = [(piece, k) for piece, length in enumerate(pieces) for k in range(length)]
        self.places, self.inputs, self.early, self.waits = places, inputs, early, waits
        self.active, self.judged, self.drawn = [], [0] * inputs, [[] for _ in range(inputs)]
        self.admitted, self.launched, self.exhausted = 0, [], False

    def load(self, active):
        assert not self.exhausted  # who says that there is no more is not asked again
        assert active.place in set(range(self.places)) - {each.place for each in self.scheduler.active}
        self.exhausted = active.number == self.inputs
        return not self.exhausted

    def may_draw(self, number, piece, certain):
        judged = self.judged[number]
        if self.waits and piece > 0 and judged == 0:
            return False
        return not (certain and self.early) or piece <= max(judged, 0 if self.waits else 1)

    def draw(self, segments, size, certain):
        expected = []
        while len(expected) < size:
            for number in self.active:
                left = self.samples[len(self.drawn[number]) :]
                if left and self.may_draw(number, left[0][0], certain):
                    self.drawn[number].append(left[0])
                    expected.append((number, *left[0]))
                    break
            else:
                if not certain or len(self.active) == self.places or self.admitted == self.inputs:
                    break
                self.active.append(self.admitted)
                self.admitted += 1
        assert samples(segments) == expected
        self.launched.append(segments)

    @rule(size=st.integers(1, 40))
    def fill(self, size):
        self.draw(self.scheduler.fill(size, self.load), size, certain=True)

    @rule(size=st.integers(1, 40))
    def speculate(self, size):
        self.draw(self.scheduler.speculate(size), size, certain=False)

    @precondition(lambda self: self.launched)
    @rule()
    def receive(self):
        """The Tallies of a batch arrive, the first that was launched before others."""
        for active, piece, _, stop in self.launched.pop(0):
            if stop == self.pieces[piece]:
                assert active.read == piece
                active.read = piece + 1

    @rule(decided=st.sets(st.integers(0, 11)))
    def evaluate(self, decided=range(12)):
        """Look at each input once more; those of these numbers are then decided, as all are by their last piece."""
        last = len(self.pieces) - 1
        for active in list(self.scheduler.active):
            number = active.number
            assert active.asked == len(self.drawn[number])
            if self.waits and active.read and not active.judged:  # the selection, which decides nothing
                self.judged[number] = active.judged = 1
            look = max(self.judged[number], 1) if self.early else last
            if active.read > look:
                self.judged[number] = active.judged = look + 1
                if look == last or number in decided:
                    self.scheduler.release(active)
                    self.active.remove(number)

    def teardown(self):
        """Whatever was called before, all inputs come to their end."""
        while self.active or self.admitted < self.inputs:
            self.fill(40)
            self.receive()
            self.evaluate()


SchedulerMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, derandomize=True, database=None, deadline=None
)  # at most 5000 calls, the same each time
TestScheduler = SchedulerMachine.TestCase


@pytest.mark.parametrize("places", [2, 3, 10])
def test_batches_are_full_to_the_end(places):
    """10 inputs of 37 samples are 23 batches of 16 and a rest."""
    the, sizes = schedule([7, 30], places), []
    while batch := filled(the, 16, inputs=10):
        sizes.append(len(batch))
        for active in [each for each in the.active if each.asked == 37]:
            the.release(active)
    assert sizes == [16] * 23 + [2]


def test_the_oldest_come_first():
    the = schedule([2, 2], places=3)
    assert filled(the, 5) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0)]
    assert filled(the, 4) == [(1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 0, 0)]
    the.release(the.active[0])
    assert [each.number for each in the.active] == [1, 2]
    assert filled(the, 5)[3:] == [(3, 0, 0), (3, 0, 1)]


def test_the_second_piece_waits_for_the_first():
    the = schedule([2, 3], places=1, waits=True)
    assert filled(the, 10) == [(0, 0, 0), (0, 0, 1)]
    assert filled(the, 10) == samples(the.speculate(10)) == []
    the.active[0].judged = 1
    assert filled(the, 10) == [(0, 1, 0), (0, 1, 1), (0, 1, 2)]


def test_speculation_is_for_what_is_left_of_a_batch():
    """The first look needs two pieces, and each look one more; beyond it the oldest comes first again."""
    the = schedule([1, 2, 3, 4], places=2, early=True)
    assert filled(the, 100) == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1)]
    assert samples(the.speculate(2)) == [(0, 2, 0), (0, 2, 1)]
    the.active[0].judged = the.active[1].judged = 2
    assert filled(the, 100) == [(0, 2, 2), (1, 2, 0), (1, 2, 1), (1, 2, 2)]
    assert samples(the.speculate(100)) == [(number, 3, k) for number in (0, 1) for k in range(4)]
    assert samples(the.speculate(100)) == []


def test_where_nothing_is_decided_early_all_is_sure():
    the = schedule([1, 2, 3], places=2)
    assert len(filled(the, 100)) == 12
    assert the.speculate(100) == []


def test_places_are_used_again():
    the, seen = schedule([1, 1], places=2), []

    def load(active):
        seen.append((active.number, active.place))
        return active.number < 5

    for _ in range(3):
        the.fill(10, load)
        the.release(the.active[-1])
    places = dict(seen)
    assert list(places) == [0, 1, 2, 3]
    assert {places[0], places[1]} == {0, 1}
    assert places[1] == places[2] == places[3]


def test_what_was_drawn_before_is_not_drawn_again():
    """An input that comes with samples, of a run that was stopped, goes on from there."""
    the = schedule([2, 3, 4], places=2, early=True)

    def load(active):
        active.asked = 3 if active.number == 0 else 9
        return active.number < 2

    assert samples(the.fill(100, load)) == [(0, 1, 1), (0, 1, 2)]
    assert samples(the.speculate(100)) == [(0, 2, k) for k in range(4)]
