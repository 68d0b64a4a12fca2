"""Scheduler: which samples go into which batch, against a model that takes them one by one."""

import random
from dataclasses import dataclass
from itertools import accumulate

import pytest

from rsfast.engine.scheduler import Scheduler


def samples(segments):
    """Each sample of the segments: of which input, of which stage, which of the stage's."""
    return [(each.active.number, each.stage, k) for each in segments for k in range(each.start, each.stop)]


def schedule(stages, slots=4, *, early=False, waits=False):
    return Scheduler(stages, slots, early=early, waits=waits)


def filled(the, size, inputs=100):
    """What `fill` returns where there are `inputs` inputs."""
    return samples(the.fill(size, lambda active: active.number < inputs))


@dataclass
class Plain:
    """An input of the model: how many of its samples were taken, and of its stages were looked at."""

    number: int
    sampled: int = 0
    evaluated: int = 0


class Model:
    """What the documentation of Scheduler says, one sample at a time."""

    def __init__(self, stages, slots, inputs, early, waits):
        self.samples = [(stage, k) for stage, length in enumerate(stages) for k in range(length)]
        self.slots, self.inputs, self.early, self.waits = slots, inputs, early, waits
        self.active, self.admitted = [], 0

    def sure(self, each, stage):
        if self.waits and stage > 0 and each.evaluated == 0:
            return False
        return not self.early or stage <= max(each.evaluated, 0 if self.waits else 1)

    def possible(self, each, stage):
        return not (self.waits and stage > 0 and each.evaluated == 0)

    def one(self, allowed):
        for each in self.active:
            if each.sampled < len(self.samples) and allowed(each, self.samples[each.sampled][0]):
                each.sampled += 1
                return [(each.number, *self.samples[each.sampled - 1])]
        return []

    def fill(self, size):
        found = []
        while len(found) < size:
            if one := self.one(self.sure):
                found += one
            elif len(self.active) < self.slots and self.admitted < self.inputs:
                self.active.append(Plain(self.admitted))
                self.admitted += 1
            else:
                break
        return found

    def speculate(self, size):
        found = []
        while len(found) < size and (one := self.one(self.possible)):
            found += one
        return found


@pytest.mark.parametrize("seed", range(300))
def test_against_a_plain_model(seed):
    """Inputs are decided at random looks, which come some batches late; then every sample was drawn once and in order."""
    rng = random.Random(seed)
    early, waits = rng.random() < 0.6, rng.random() < 0.4
    stages = [rng.randint(waits, 6), *(rng.randint(1, 12) for _ in range(rng.randint(1, 5)))]
    slots, inputs, lag = rng.randint(1, 6), rng.randint(1, 12), rng.randint(0, 2)
    the, model = schedule(stages, slots, early=early, waits=waits), Model(stages, slots, inputs, early, waits)
    last = len(stages) - 1
    decided_at = [rng.randint(1, last) if early else last for _ in range(inputs)]
    drawn = {number: [] for number in range(inputs)}
    loaded, decided, late = [], [], []

    def load(active):
        assert active.slot in range(slots)
        assert active.slot not in {each.slot for each in the.active}
        loaded.append(active.number)
        return active.number < inputs

    def evaluate():
        for active, each in zip(list(the.active), list(model.active), strict=True):
            assert (active.number, active.sampled) == (each.number, each.sampled)
            if waits and active.received and not active.evaluated:
                active.evaluated = each.evaluated = 1
            while active.received > (look := max(active.evaluated, 1) if early else last):
                active.evaluated = each.evaluated = look + 1
                if look == decided_at[active.number]:
                    the.release(active)
                    model.active.remove(each)
                    decided.append(active.number)
                    break

    for _ in range(10_000):
        size, segments = rng.randint(1, 40), []
        for step in ("fill", "judge", "fill", "speculate"):  # as Sampler does
            room = size - len(samples(segments))
            if step == "judge":
                evaluate()
                continue
            new = the.fill(room, load) if step == "fill" else the.speculate(room)
            assert samples(new) == getattr(model, step)(room)
            segments += new
        late.append(segments)
        for number, stage, k in samples(segments):
            drawn[number].append((stage, k))
        while len(late) > (lag if segments else 0):
            for each in late.pop(0):
                if each.stop == stages[each.stage]:
                    assert each.active.received <= each.stage
                    each.active.received = each.stage + 1
        if not segments and not the.active:
            break
    assert sorted(decided) == list(range(inputs))
    assert loaded == sorted(loaded)
    assert loaded.count(inputs) <= 1  # who says that there is no more is not sampled again
    every = [(stage, k) for stage, length in enumerate(stages) for k in range(length)]
    ends = list(accumulate(stages))
    for number, taken in drawn.items():
        assert taken == every[: len(taken)]
        assert len(taken) >= ends[decided_at[number]]


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
    """The first look needs two stages, and each look one more; beyond it the oldest comes first again."""
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
