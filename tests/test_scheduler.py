"""Scheduler: which samples go into which batch, against a model that takes them one by one."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rsfast.engine.scheduler import Scheduler


def samples(segments):
    """Each sample of the segments: of which input, of which stage, which of the stage's."""
    return [(each.active.number, each.stage, k) for each in segments for k in range(each.start, each.stop)]


def schedule(stages, slots=4, *, early=False, waits=False):
    return Scheduler(stages, slots, early=early, waits=waits)


def filled(the, size, inputs=100):
    """What `fill` returns where there are `inputs` inputs."""
    return samples(the.fill(size, lambda active: active.number < inputs))


class SchedulerMachine(RuleBasedStateMachine):
    """Call a Scheduler in any order, and take from each input one sample after another, as its documentation says."""

    @initialize(
        stages=st.lists(st.integers(1, 12), min_size=2, max_size=6),
        slots=st.integers(1, 6),
        inputs=st.integers(1, 12),
        early=st.booleans(),
        waits=st.booleans(),
    )
    def begin(self, stages, slots, inputs, early, waits):
        self.stages, self.scheduler = stages, schedule(stages, slots, early=early, waits=waits)
        self.samples = [(stage, k) for stage, length in enumerate(stages) for k in range(length)]
        self.slots, self.inputs, self.early, self.waits = slots, inputs, early, waits
        self.active, self.evaluated, self.drawn = [], [0] * inputs, [[] for _ in range(inputs)]
        self.admitted, self.launched, self.exhausted = 0, [], False

    def load(self, active):
        assert not self.exhausted  # who says that there is no more is not asked again
        assert active.slot in set(range(self.slots)) - {each.slot for each in self.scheduler.active}
        self.exhausted = active.number == self.inputs
        return not self.exhausted

    def may_draw(self, number, stage, certain):
        evaluated = self.evaluated[number]
        if self.waits and stage > 0 and evaluated == 0:
            return False
        return not (certain and self.early) or stage <= max(evaluated, 0 if self.waits else 1)

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
                if not certain or len(self.active) == self.slots or self.admitted == self.inputs:
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
        for active, stage, _, stop in self.launched.pop(0):
            if stop == self.stages[stage]:
                assert active.received == stage
                active.received = stage + 1

    @rule(decided=st.sets(st.integers(0, 11)))
    def evaluate(self, decided=range(12)):
        """Evaluate each input once more; those of these numbers are then decided, as all are by their last stage."""
        last = len(self.stages) - 1
        for active in list(self.scheduler.active):
            number = active.number
            assert active.sampled == len(self.drawn[number])
            if self.waits and active.received and not active.evaluated:  # the selection, which decides nothing
                self.evaluated[number] = active.evaluated = 1
            analysis = max(self.evaluated[number], 1) if self.early else last
            if active.received > analysis:
                self.evaluated[number] = active.evaluated = analysis + 1
                if analysis == last or number in decided:
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


@pytest.mark.parametrize("slots", [2, 3, 10])
def test_batches_are_full_to_the_end(slots):
    """10 inputs of 37 samples are 23 batches of 16 and a rest."""
    the, sizes = schedule([7, 30], slots), []
    while batch := filled(the, 16, inputs=10):
        sizes.append(len(batch))
        for active in [each for each in the.active if each.sampled == 37]:
            the.release(active)
    assert sizes == [16] * 23 + [2]


def test_the_oldest_come_first():
    the = schedule([2, 2], slots=3)
    assert filled(the, 5) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0)]
    assert filled(the, 4) == [(1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 0, 0)]
    the.release(the.active[0])
    assert [each.number for each in the.active] == [1, 2]
    assert filled(the, 5)[3:] == [(3, 0, 0), (3, 0, 1)]


def test_the_second_piece_waits_for_the_first():
    the = schedule([2, 3], slots=1, waits=True)
    assert filled(the, 10) == [(0, 0, 0), (0, 0, 1)]
    assert filled(the, 10) == samples(the.speculate(10)) == []
    the.active[0].evaluated = 1
    assert filled(the, 10) == [(0, 1, 0), (0, 1, 1), (0, 1, 2)]


def test_speculation_is_for_what_is_left_of_a_batch():
    """The first analysis needs two stages, and each analysis one more; beyond it the oldest comes first again."""
    the = schedule([1, 2, 3, 4], slots=2, early=True)
    assert filled(the, 100) == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1)]
    assert samples(the.speculate(2)) == [(0, 2, 0), (0, 2, 1)]
    the.active[0].evaluated = the.active[1].evaluated = 2
    assert filled(the, 100) == [(0, 2, 2), (1, 2, 0), (1, 2, 1), (1, 2, 2)]
    assert samples(the.speculate(100)) == [(number, 3, k) for number in (0, 1) for k in range(4)]
    assert samples(the.speculate(100)) == []


def test_where_nothing_is_decided_early_all_is_sure():
    the = schedule([1, 2, 3], slots=2)
    assert len(filled(the, 100)) == 12
    assert the.speculate(100) == []


def test_places_are_used_again():
    the, seen = schedule([1, 1], slots=2), []

    def load(active):
        seen.append((active.number, active.slot))
        return active.number < 5

    for _ in range(3):
        the.fill(10, load)
        the.release(the.active[-1])
    slots = dict(seen)
    assert list(slots) == [0, 1, 2, 3]
    assert {slots[0], slots[1]} == {0, 1}
    assert slots[1] == slots[2] == slots[3]


def test_what_was_drawn_before_is_not_drawn_again():
    """An input that comes with samples, of a run that was stopped, goes on from there."""
    the = schedule([2, 3, 4], slots=2, early=True)

    def load(active):
        active.sampled = 3 if active.number == 0 else 9
        return active.number < 2

    assert samples(the.fill(100, load)) == [(0, 1, 1), (0, 1, 2)]
    assert samples(the.speculate(100)) == [(0, 2, k) for k in range(4)]
