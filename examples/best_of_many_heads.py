r"""
The best of 409 radii is no certificate
=======================================

"The Lipschitz-Variance-Margin Tradeoff for Enhanced Randomized Smoothing" (Delattre, Araujo, Barthélemy and Allauzen, 2024)
turns one sample of logits into 409 radii: one of votes, and two of each of 204 soft heads, Softmax and Sparsemax at 102
temperatures. The published code reports the largest. Each radius alone is wrong with probability at most
:math:`\alpha`; nothing bounds the error of the largest.

This example draws scores whose truth is known and counts errors. They are built to be hard: the heads look at different
samples, so that their errors hardly coincide. The largest of the radii is then wrong more often than :math:`\alpha`. One
head, fixed before, is not, and neither are several heads that share :math:`\alpha`. A second construction shows a larger
defect: the largest radius is about another classifier for each input, and can be wrong every time about the one that is
deployed.
"""

# %%
# Logits with a known truth
# -------------------------
# There are two classes, and the logit of the first is ahead of the second's by a gap of :math:`\pm g`. A gap tells a head
# something only if it is not small beside the head's temperature. So the head with :math:`t = 10` sees the few gaps of 60
# and 8 only, and votes see all. The signs are fair coins: every smoothed score is exactly 1/2, **every true radius is 0, and
# every certificate is an error**.

import matplotlib.pyplot as plt
import numpy as np
import torch
from paper import QUICK, record
from scipy.stats import beta, binom

import rsfast
from rsfast.compat.lvm_rs import HEADS

ALPHA, N, NOISE = 0.05, 1_000_000, rsfast.Gaussian(1.0)
REPEATS = 20_000 if not QUICK else 8000
gaps = np.array([60, 8, 1.2, 0.17, 0.03, 1e-5])
shares = np.array([1, 2.5, 6, 15, 40, 80]) / 144.5

signed = torch.tensor(np.concatenate([gaps, -gaps]), dtype=torch.float32)
cells = rsfast.Tally(len(signed), 2, HEADS)  # a cell for each gap and sign: the scores of all heads
rsfast.ops.accumulate(torch.stack([signed, torch.zeros_like(signed)], dim=1), cells, rows=torch.arange(len(signed)))
print(f"{len(cells.heads)} heads; {len(signed)} cells")

# %%
# A sample of a million logits only matters by how many lie in each cell, so a multinomial draw stands for it. The scores of
# its samples sum to the cells' integers, times those numbers: that is what a :class:`rsfast.Tally` holds.


def tally_of(numbers, heads):
    """Return the Tally of samples, given how many [repeats, cells] lie in each cell."""
    places = [cells.soft_heads.index(head) for head in heads if head.soft]
    numbers, tally = torch.from_numpy(numbers), rsfast.Tally(len(numbers), 2, heads)
    tally.n += numbers.sum(1)
    tally.counts[:, :2] += torch.stack([numbers[:, signed > 0].sum(1), numbers[:, signed < 0].sum(1)], dim=1)
    tally.sums += torch.einsum("rc,cmk->rmk", numbers, cells.sums[:, places])
    tally.squares += torch.einsum("rc,cmk->rmk", numbers, cells.squares[:, places])
    return tally


rng = np.random.default_rng(0)
fair = np.tile(shares / 2, 2)
numbers = rng.multinomial(N, fair, size=REPEATS)
selection = rng.multinomial(100, fair, size=REPEATS)


# %%
# The published number
# --------------------
# Each class gets :math:`\alpha / 2`, votes by Clopper-Pearson, scores by the empirical Bernstein bound. A head claims
# something if the lower limit of one class is above the upper limit of the other. With two classes this means that a lower
# limit is above 1/2.


def claims(numbers, alpha):
    """Return, for each repeat and head, the class that is claimed, or ABSTAIN; votes come first."""
    share, found = alpha / 2, []
    votes = numbers[:, : len(gaps)].sum(1), numbers[:, len(gaps) :].sum(1)
    distinct, inverse = np.unique(np.stack(votes), return_inverse=True)
    found.append(rsfast.bounds.clopper_pearson_lower(distinct, N, share)[inverse].reshape(2, -1))
    scores = cells.sums.numpy() / 2**30
    for place in range(scores.shape[1]):
        mean = numbers @ scores[:, place, 0] / N
        variance = np.maximum(numbers @ scores[:, place, 0] ** 2 / N - mean**2, 0) * N / (N - 1)
        found.append([rsfast.bounds.empirical_bernstein_lower(each, variance, N, share) for each in (mean, 1 - mean)])
    lower = np.array(found)  # [heads, classes, repeats]
    return np.where(lower.max(1) > 0.5, lower.argmax(1), rsfast.ABSTAIN).T


claimed = claims(numbers, ALPHA) != rsfast.ABSTAIN
worst_soft_head = claimed[:, 1 + claimed[:, 1:].mean(0).argmax()]

# %%
# Votes alone are wrong with a probability that a binomial distribution gives exactly: just below alpha, as this is what the
# bound allows. What soft heads add is the chance that one of them claims something where votes claim nothing. Only this has
# to be estimated.

by_votes = 2 * binom.sf(binom.isf(ALPHA / 2, N, 0.5), N, 0.5)
added = claimed[:, 1:].any(1) & ~claimed[:, 0]
print(f"votes alone: {by_votes:.5f}, in the sample {claimed[:, 0].mean():.5f}; soft heads add {added.mean():.5f}")

# %%
# What holds
# ----------
# Ours fixes the head before sampling, here votes, and chooses the class on a selection sample.
# If several heads are to be compared, :func:`rsfast.certify` with a list divides alpha among them, and the best may be
# quoted. Here :func:`rsfast.certificates` does it for a dozen heads.

dozen = (rsfast.Votes(), *cells.soft_heads[::19])
first, second = tally_of(selection, dozen), tally_of(numbers, dozen)


def errors(head, alpha):
    """Return which repeats end with a certificate of a head, which is an error here."""
    bound = "empirical_bernstein" if head.soft else "clopper_pearson"
    options = {"bound": bound, "alpha": alpha, "seed": 0, "assume_independent": True}
    found = rsfast.certificates(first, second, NOISE, head=head, **options)
    return np.array([not certificate.abstained for certificate in found])


fixed = errors(rsfast.Votes(), ALPHA)
divided = np.any([errors(head, ALPHA / len(dozen)) for head in dozen], axis=0)

# %%
# Every rate comes with its exact 99.9 % interval (Clopper and Pearson).


def interval(wrong):
    """Return the two-sided 99.9 % Clopper-Pearson interval of the probability of an error."""
    k, n = wrong.sum(), len(wrong)
    return beta.ppf(0.0005, k, n - k + 1) if k else 0.0, beta.ppf(0.9995, k + 1, n - k) if k < n else 1.0


rates = {
    "largest of 409 radii": (by_votes + added.mean(), *(by_votes + each for each in interval(added))),
    "the soft head that errs most": (worst_soft_head.mean(), *interval(worst_soft_head)),
    "ours: one head,\nfixed before": (fixed.mean(), *interval(fixed)),
    f"ours: {len(dozen)} heads\nshare alpha": (divided.mean(), *interval(divided)),
}
largest, alone, one, shared = rates.values()

# %%
# Whose radius is it?
# -------------------
# Now large gaps favour the first class, and small ones the second, so that votes are tied: the true radius of the
# classifier that votes is 0. A head with a large temperature does not see the small gaps. Its radius is large, and true of
# the classifier smoothed with that head. The largest of 409 radii is then claimed in every sample. Whoever deploys votes
# gets a wrong radius each time.

large = gaps > 1
lean = np.where(large, 0.9, 0.5 - 0.4 * shares[large].sum() / shares[~large].sum())  # the first class's share of a gap
tied = np.concatenate([shares * lean, shares * (1 - lean)])
truth = tied @ (cells.sums.numpy()[:, :, 0] / 2**30)  # of each soft head, the true score of the first class
repeats = REPEATS // 20
about_votes = claims(rng.multinomial(N, tied, size=repeats), ALPHA)
wrong_about_votes = (about_votes[:, 1:] != rsfast.ABSTAIN).any(1)
print(f"true score of the first class: {tied[: len(gaps)].sum():.4f} of votes, up to {truth.max():.4f} of a soft head")

# %%
# Result
# ------
# The largest radius errs about an eighth more often than :math:`\alpha`. It is no more than that because empirical Bernstein
# limits are loose: each soft head alone errs far less often than it may.

fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for place, (rate, low, high) in enumerate(rates.values()):
    ax.errorbar(rate, -place, xerr=[[rate - low], [high - rate]], fmt="o", color=f"C{place}", capsize=4)
    ax.annotate(f"{rate:.4f}", (rate, -place), (0, 8), textcoords="offset points", ha="center")
ax.axvline(ALPHA, color="k", linestyle="--")
ax.annotate("alpha", (ALPHA, -len(rates) + 0.5), (-4, 0), textcoords="offset points", ha="right")
ax.set_yticks([-place for place in range(len(rates))], list(rates))
ax.set(xlim=(0, None), ylim=(-len(rates) + 0.4, 0.6))
ax.set(xlabel="share of certificates that are wrong (99.9 % interval)")
ax.set_title("The largest of 409 radii errs more often than alpha")

for claim, rate, bound in (
    ("error rate of the largest of 409 radii, hostile scores, alpha = 0.05", largest, "above alpha"),
    ("error rate of one head that is fixed before (votes), same scores, alpha = 0.05", one, "at most alpha"),
    ("error rate of the best of 12 heads that share alpha, same scores, alpha = 0.05", shared, "at most alpha"),
):
    record("margin", claim, float(rate[0]), bound, f"99.9 % interval {rate[1]:.4f} to {rate[2]:.4f}")
record(
    "margin",
    "error rate of the largest of 409 radii about the classifier that votes, where votes are tied",
    float(wrong_about_votes.mean()),
    None,
    "the radius is true of another head's classifier, which another input may not choose",
)

# %%
# Each interval misses the truth with probability 0.001 at most.

assert largest[1] > ALPHA, "the largest radius errs more often than alpha"
assert one[1] <= ALPHA, "one head errs with alpha at most"
assert shared[2] <= ALPHA, "heads that share alpha err, together, with alpha at most"
assert alone[2] < ALPHA, "no single soft head is at fault"
assert abs(tied[: len(gaps)].sum() - 0.5) < 1e-12, "votes are tied"
assert wrong_about_votes.all(), "the largest radius is wrong about votes in every sample"
