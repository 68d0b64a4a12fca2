"""The reference backend: both ops in plain PyTorch, on any device. Slow, and the oracle of every other backend.

Philox runs on int64 (products wrap, which keeps their low 64 bits), float32 stays float32, and fma is built from float64.
"""

from __future__ import annotations

import torch

from ..heads import HEADS, Pointwise, Sparsemax
from ..heads.bins import BINS, bin_edges
from ..noise import philox
from .backends import Accumulation, Perturbation

Tensor = torch.Tensor

_MASK = 0xFFFFFFFF
_ONE = 1 << 40  # 1 within a row of scores


def fma(a: Tensor | float, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Return a * b + c, float32 with one rounding: exact product, sum rounded to odd in float64, then to float32."""
    a, b, c = (torch.as_tensor(value, dtype=torch.float32).double() for value in (a, b, c))
    product = a * b
    total = product + c
    shadow = total - product
    error = (product - (total - shadow)) + (c - shadow)
    bits = total.view(torch.int64)
    even_and_inexact = ((error > 0) | (error < 0)) & (bits & 1 == 0)
    odd = torch.where((error > 0) == (total > 0), bits + 1, bits - 1)
    return torch.where(even_and_inexact, odd, bits).view(torch.float64).float()


def sqrt(value: Tensor) -> Tensor:
    """Return the correctly rounded square root, float32, of positive float32 values; torch's own may be off by an ulp.

    A root belongs to its neighbour if the value lies beyond the square of the midpoint between the two, which float64 holds.
    """
    exact, root = value.double(), value.sqrt()
    up, down = (torch.nextafter(root, torch.full_like(root, limit)) for limit in (torch.inf, 0.0))
    above, below = ((root.double() + neighbour.double()) / 2 for neighbour in (up, down))
    return torch.where(exact > above * above, up, torch.where(exact < below * below, down, root))


def _horner(x: Tensor, coefficients: str) -> Tensor:
    first, *rest = (float.fromhex(c) for c in coefficients.split())
    result = torch.full_like(x, first)
    for c in rest:
        result = fma(result, x, c)
    return result


def minus_two_log(word: Tensor) -> Tensor:
    """Return -2 ln((word + 1/2) / 2^32) for int64 words, as csrc/noise.h does."""
    near_one = word > 0xBFFFFFFF
    value = (torch.where(near_one, word ^ _MASK, word).double().float() + 0.5) * 2.0**-32
    mantissa, exponent = torch.frexp(value)  # mantissa in [1/2, 1); here it is to be in [3/4, 3/2)
    below = mantissa < 0.75
    f = torch.where(near_one, -value, torch.where(below, 2 * mantissa, mantissa) - 1)
    e = torch.where(near_one, torch.zeros_like(exponent), torch.where(below, exponent - 1, exponent)).float()
    q = _horner(
        f,
        "-0x1.ca09bep-4 0x1.f64a52p-3 -0x1.334838p-2 0x1.57d2cap-2 -0x1.99026ep-2 0x1.ffe9b4p-2 -0x1.555694p-1 0x1p0 -0x1p1",
    )
    return fma(q, f, e * float.fromhex("-0x1.62e43p+0"))


def box_muller(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return r cos(theta) and r sin(theta), float32, for int64 words, as csrc/noise.h does."""
    r = sqrt(minus_two_log(radius))
    remainder = (angle << 2) & _MASK
    remainder = torch.where(remainder >= 1 << 31, remainder - (1 << 32), remainder)
    x = remainder.double().float() * 2.0**-31
    quadrant = ((angle + 0x20000000) & _MASK) >> 30
    square = x * x
    s = _horner(square, "-0x1.2d92dep-15 0x1.465e9p-9 -0x1.4abbb8p-4 -0x1.a34d4cp-26")
    s = fma(x, float.fromhex("0x1.921fb6p-1"), s * x)
    c = _horner(square, "0x1.d9bf06p-19 -0x1.55c58cp-12 0x1.03c1dcp-6 -0x1.3bd3ccp-2 0x1p0")
    odd = quadrant & 1 == 1
    cosine, sine = r * torch.where(odd, s, c), r * torch.where(odd, c, s)
    return torch.where((quadrant == 1) | (quadrant == 2), -cosine, cosine), torch.where(quadrant >= 2, -sine, sine)


def standard_normal(samples: Tensor, input_ids: Tensor, elements: int, seed: int, stream: int) -> Tensor:
    """Return the float32 noise [B, elements] of the samples [B] of the inputs with ids [B]."""
    blocks = torch.arange((elements + 3) // 4, device=samples.device)
    shape = (samples.shape[0], blocks.shape[0])
    high = stream << 24 | samples >> 32
    words = philox(
        (
            blocks.expand(shape),
            (samples & _MASK)[:, None].expand(shape),
            input_ids[:, None].expand(shape),
            high[:, None].expand(shape),
        ),
        seed,
    )
    z = torch.stack([*box_muller(words[0], words[1]), *box_muller(words[2], words[3])], dim=-1)
    return z.flatten(1)[:, :elements]


def perturb(job: Perturbation) -> None:
    """Fill ``job.out``."""
    shape = job.x.shape[1:]
    z = standard_normal(job.samples, job.input_ids[job.rows], shape.numel(), job.seed, job.stream)
    y = fma(job.sigma, z, job.x.flatten(1)[job.rows]).view(-1, *shape)
    if job.clamp is not None:
        y = y.clamp(*torch.tensor(job.clamp, dtype=torch.float32).tolist())
    if job.scale is not None and job.shift is not None:
        scale, shift = (t.view(-1, *[1] * (len(shape) - 1)) for t in (job.scale, job.shift))
        y = fma(y, scale, shift)
    job.out.copy_(y)


def exp_units(a: Tensor) -> Tensor:
    """Return exp(a), a <= 0, as integers in units of 2^-40, as csrc/accumulate.h does; 0 for a < -28."""
    kept = a >= -28.0
    a = torch.where(kept, a, torch.zeros_like(a))
    n = fma(a, float.fromhex("0x1.715476p+0"), 12582912.0) - 12582912.0
    r = fma(n, float.fromhex("-0x1.7f7d1cp-20"), fma(n, float.fromhex("-0x1.62e4p-1"), a))
    p = _horner(r, "0x1.6a25cep-10 0x1.1239dep-7 0x1.5558f0p-5 0x1.555492p-3 0x1.fffffcp-2")
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
