"""The reference backend: both ops in plain PyTorch, on any device. Slow, and the oracle of every other backend.

Philox runs on int64 (products wrap, which keeps their low 64 bits), float32 stays float32, and fma is built from float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..heads import HEADS, Pointwise, Sparsemax
from ..heads.bins import BINS, bin_edges
from ..noise import DRAWS, NoiseParameters, philox
from ..noise.base import Draw
from ..noise.streams import FIXED_STREAM
from . import arithmetic
from .arithmetic import fma, horner
from .calls import Accumulation, Perturbation

Tensor = torch.Tensor

_MASK = 0xFFFFFFFF
_ONE = 1 << 40  # 1 within a row of scores


class Words(NamedTuple):
    """The random words of some samples [B] of the inputs with ids [B]."""

    samples: Tensor
    input_ids: Tensor
    elements: int
    seed: int
    stream: int

    def of_blocks(self, blocks: Tensor) -> Sequence[Tensor]:
        """Return the four words of blocks [N], each int64 [B, N]."""
        shape = (self.samples.shape[0], blocks.shape[0])
        rows = (self.samples & _MASK, self.input_ids, self.stream << 24 | self.samples >> 32)
        low, input_id, high = (row[:, None].expand(shape) for row in rows)
        return philox((blocks.expand(shape), low, input_id, high), self.seed)

    def in_fours(self, plain: Callable[[Sequence[Tensor], object], Sequence[Tensor]]) -> Tensor:
        """Return [B, elements] of a function that makes four elements of the four words of a block."""
        blocks = torch.arange((self.elements + 3) // 4, device=self.samples.device)
        return torch.stack([*plain(self.of_blocks(blocks), arithmetic)], dim=-1).flatten(1)[:, : self.elements]

    def of_groups(self, groups: Tensor) -> Tensor:
        """Return [B, elements]: word g % 4 of block g // 4, where g is the group [elements] of an element."""
        blocks = torch.stack([*self.of_blocks(groups.long() >> 2)], dim=-1)
        return blocks.gather(2, (groups.long() & 3).expand(blocks.shape[:2])[:, :, None])[:, :, 0]

    def more(self) -> Words:
        """Return other words of the same blocks, for draws that need 64 bits an element: no stream has the top bit."""
        return self._replace(stream=self.stream | 0x80)

    def fixed(self) -> Words:
        """Return words that are the same for all samples, input ids and streams: of a stream that nothing else uses."""
        zeros = torch.zeros_like(self.samples)
        return self._replace(samples=zeros, input_ids=zeros, stream=FIXED_STREAM)


class GivenWords(NamedTuple):
    """Words that are given, of Philox blocks [N]: four int64 tensors. What draws take of `Words` that need nothing else."""

    of_blocks: Sequence[Tensor]

    def in_fours(self, plain: Callable[[Sequence[Tensor], object], Sequence[Tensor]]) -> Tensor:
        """Return [4 N] of a function that makes four elements of the four words of a block."""
        return torch.stack([*plain(self.of_blocks, arithmetic)], dim=-1).flatten()


def noise_of_words(draw: str, words: Tensor, out: Tensor) -> None:
    """Fill `out` with what a draw makes of words: `ops.words.noise_of_words`."""
    out.copy_(standard(DRAWS[draw], GivenWords((words.long() & _MASK).view(-1, 4).unbind(1)), NoiseParameters(draw, ())))


def standard(draw: Draw, words: Words | GivenWords, noise: NoiseParameters) -> Tensor:
    """Return the standard noise of words: what a draw makes of them."""
    return words.in_fours(draw.plain) if draw.plain else draw.standard(words, noise, arithmetic)  # type: ignore[misc]


def noisy(job: Perturbation) -> Tensor:
    """Return x with its noise, float32 [B, elements]."""
    words = Words(job.samples, job.input_ids[job.rows], job.x.shape[1:].numel(), job.seed, job.stream)
    draw = DRAWS[job.noise.draw]
    y: Tensor = draw.combine(standard(draw, words, job.noise), job.x.flatten(1)[job.rows], job.noise, arithmetic)
    return y


def perturb(job: Perturbation) -> None:
    """Fill ``job.out``."""
    finish(noisy(job).view(-1, *job.x.shape[1:]), job, job.out)


def finish(y: Tensor, job: Perturbation, out: Tensor) -> None:
    """Fill `out`, rows of ``job.out``, with their noisy inputs y, float32, clamped, scaled and shifted."""
    if job.clamp is not None:
        low, high = torch.tensor(job.clamp, dtype=torch.float32).tolist()
        y = torch.where(y < low, low, y)  # not clamp: on aarch64 it makes 0 of -0
        y = torch.where(y > high, high, y)
    if job.scale is not None and job.shift is not None:
        scale, shift = (t.view(-1, *[1] * (y.ndim - 2)) for t in (job.scale, job.shift))
        y = fma(y, scale, shift)
    out.copy_(y)


def exp_units(a: Tensor) -> Tensor:
    """Return exp(a), a <= 0, as integers in units of 2^-40, as csrc/accumulate.h does; 0 for a < -28."""
    kept = a >= -28.0
    a = torch.where(kept, a, torch.zeros_like(a))
    n = fma(a, float.fromhex("0x1.715476p+0"), 12582912.0) - 12582912.0
    r = fma(n, float.fromhex("-0x1.7f7d1cp-20"), fma(n, float.fromhex("-0x1.62e4p-1"), a))
    p = horner(r, "0x1.6a25cep-10 0x1.1239dep-7 0x1.5558f0p-5 0x1.555492p-3 0x1.fffffcp-2")
    p = fma(p, r * r, r) + 1
    return torch.where(kept, ((p * 2.0**24).long() << 16) >> -n.long(), torch.zeros_like(n, dtype=torch.int64))


def softmax_scores(a: Tensor) -> Tensor:
    """Return softmax of a [B, K], whose rows have maximum 0, in units of 2^-30."""
    units = exp_units(a)
    total = (units.sum(1, keepdim=True) + 255) >> 8
    half = (1 << 62) // total
    factor = 2 * half + (2 * ((1 << 62) - half * total) >= total).long()  # floor(2^63 / total)
    return ((units >> 9) * factor) >> 32


def sparsemax_scores(a: Tensor) -> Tensor:
    """Return sparsemax of a [B, K], whose rows have maximum 0, in units of 2^-30, by sorting."""
    units = ((a + 1).clamp(min=0) * 2.0**24).long() << 16
    ordered = units.sort(dim=1, descending=True).values
    total = ordered.cumsum(1)
    place = torch.arange(1, units.shape[1] + 1, device=a.device)
    count = (_ONE + place * ordered > total).sum(1, keepdim=True)
    excess = total.gather(1, count - 1) - _ONE
    threshold = (excess + count - 1) // count
    return (units - threshold).clamp(min=0) >> 10


def votes(logits: Tensor) -> Tensor:
    """Return the one-hot argmax int64 [B, K] of float32 logits [B, K] that vote; ties go to the lowest class."""
    best = (logits == logits.max(1, keepdim=True).values).int().argmax(1)
    return torch.nn.functional.one_hot(best, logits.shape[1])


def scores(kind: float, scale: float, low: float, high: float, logits: Tensor) -> Tensor:
    """Return a soft head's scores int64 [B, K] of float32 logits [B, K] that vote, in units of 2^-30."""
    (head,) = (head for head in HEADS.values() if head.kind == kind)
    if issubclass(head, Pointwise):
        return head.score(logits, scale, low, high)
    a = (logits - logits.max(1, keepdim=True).values) * scale
    return sparsemax_scores(a) if kind == Sparsemax.kind else softmax_scores(a)


def bins(q: Tensor) -> Tensor:
    """Return `rsfast.sequences.bin_of` of int64 scores: the bins from 1/2 on mirror those below it."""
    half = 1 << 29
    distance = torch.where(q < half, q, 2 * half - q).clamp(max=half - 1)
    edges = torch.from_numpy(bin_edges()[0][: BINS // 2]).to(q.device)
    place = torch.bucketize(distance, edges, right=True) - 1
    return torch.where(q < half, place, BINS - 1 - place)


def add_to_histograms(job: Accumulation, h: int, rows: Tensor, q: Tensor) -> None:
    """Add the scores int64 [B, K] of head `h` to the histograms of its tracked classes."""
    tracked = q.gather(1, job.tracked_classes[rows, h])
    place = rows[:, None], torch.arange(tracked.shape[1], device=q.device), bins(tracked)
    job.bin_counts[:, h].index_put_(place, torch.ones_like(tracked), accumulate=True)
    job.bin_sums[:, h].index_put_(place, tracked, accumulate=True)


def accumulate(job: Accumulation) -> None:
    """Add every row of the logits to its input's slot."""
    logits, rows = job.logits.float(), job.rows
    valid = logits.amax(1).isfinite()  # a NaN anywhere is the maximum
    job.n.index_add_(0, rows, torch.ones_like(rows))
    job.counts[:, -1].index_add_(0, rows, (~valid).long())
    job.bin_counts[..., 0].index_add_(0, rows, (~valid).long()[:, None, None].expand(-1, *job.tracked_classes.shape[1:]))
    logits, rows = logits[valid], rows[valid]
    if not rows.numel():
        return
    job.counts[:, :-1].index_add_(0, rows, votes(logits))
    for h, (kind, scale, low, high) in enumerate(job.parameters.tolist()):
        q = scores(kind, scale, low, high, logits)
        job.sums[:, h].index_add_(0, rows, q)
        job.squares[:, h].index_add_(0, rows, (q * q + (1 << 30) - 1) >> 30)
        if job.tracked_classes.shape[2]:
            add_to_histograms(job, h, rows, q)
