"""What no refactoring may change, as it was at commit 957e8b9: noise, Tallies, certificates and run folders, bit for bit.

Folders and files that this commit wrote lie in frozen/, too: they must still be read, resumed, merged and certified again.
Only what users may name is used here. Where a keyword, an attribute or a field of a certificate gets another name, `NOW`
says so. Fields that are added do not matter.

Early decisions have moved since: votes are analysed at more sample counts. Here they are analysed where they were
(`_looks`), which shows that nothing else moved.

After a change that is meant to change results (another `STREAM_VERSION`, a tighter bound), write frozen/ anew with
``python tests/test_frozen.py --write``, and say so in the CHANGELOG.
"""

import hashlib
import itertools
import json
import math
import operator
import os
import re
import shutil
import signal
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from scipy import special

import rsfast
from rsfast.cli import main
from rsfast.sequences import analysis_ends
from rsfast.stats.registry import BOUNDS as CLASSES

FROZEN = Path(__file__).resolve().parent / "frozen"
sys.path.append(str(FROZEN))  # for --model, too

import frozen_net  # noqa: E402

NOW = {"cap": "max_samples", "tracked": "tracked_classes"}
"""Keywords, attributes and fields of certificates that may get another name: what each is called now."""

HEADS = {
    "votes": rsfast.Votes(),
    "softmax": rsfast.Softmax(0.5),
    "sparsemax": rsfast.Sparsemax(2.0),
    "clipped": rsfast.ClippedLogits(-4.0, 4.0),
}
SOFT = [HEADS[name] for name in ("softmax", "sparsemax", "clipped")]
BOUNDS = (
    *("clopper_pearson", "randomized_clopper_pearson", "hoeffding", "empirical_bernstein", "betting"),
    *("beta_binomial_sequence", "betting_sequence"),
)
RULES = ("auto", "one_vs_rest", "top_two", "class_partitioning", "bonferroni")
GOALS = {"all": {}, "radius": {"radius": 0.25}, "rtol": {"rtol": 0.25}}


def make_tally(inputs, classes, heads, tracked=None):
    return rsfast.Tally(inputs, classes, heads, **{NOW["tracked"]: tracked})


def integers(tally):
    """All integers of a Tally by their names."""
    names = ("n", "counts", "sums", "squares", NOW["tracked"], "bin_counts", "bin_sums")
    return {name: getattr(tally, name) for name in names}


# Comparison


def fingerprint():
    """What the last bits of float64 results depend on: versions, and what the functions return on this processor."""
    x = np.linspace(0.01, 0.99, 997)
    values = [np.log(x), np.exp(-x), np.log1p(-x), np.sqrt(x), np.tanh(x), x**0.3, special.ndtri(x), special.erf(x)]
    values += [
        special.erfcx(x),
        special.log_ndtr(-9 * x),
        special.betaincinv(50 * x, 70 - 50 * x, 0.001),
        special.gammaln(9 * x),
    ]
    digest = hashlib.sha256(b"".join(value.tobytes() for value in values)).hexdigest()[:16]
    return {"numpy": np.__version__, "scipy": scipy.__version__, "functions": digest}


def load(name):
    return json.loads((FROZEN / f"{name}.json").read_text())


def differences(found, expected, exact, where=""):
    """Yield where two values of JSON differ. What `found` has beyond the keys of `expected` is left out of account.

    Floats must be equal, or, unless `exact`, equal to 1e-9 of their size.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            name = key if key in found else NOW.get(key, key)  # names in files and of cases stay
            if name in found:
                yield from differences(found[name], value, exact, f"{where}.{key}")
            else:
                yield f"{where}.{key} is missing"
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for place, values in enumerate(zip(found, expected, strict=True)):
            yield from differences(*values, exact, f"{where}[{place}]")
    elif type(found) is type(expected) is float and not exact and math.isclose(found, expected, rel_tol=1e-9):
        return
    elif type(found) is not type(expected) or found != expected:
        yield f"{where} is {found!r}, was {expected!r}"


def assert_frozen(found, expected):
    found = json.loads(json.dumps(found))
    different = list(differences(found, expected, exact=load("about")["arithmetic"] == fingerprint()))
    assert not different, f"{len(different)} differ: {different[:5]}"


def digest(tensor):
    """A digest of a tensor's type, shape, strides and bits."""
    bits = tensor.contiguous()
    if bits.is_floating_point():
        bits = bits.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
    about = f"{tensor.dtype} {list(tensor.shape)} {tensor.stride()} ".encode()
    return hashlib.sha256(about + bits.numpy().tobytes()).hexdigest()[:16]


# Noise


def grid(*shape):
    """Multiples of 1/64 from -1/2 to 1."""
    return (torch.arange(math.prod(shape)) * 37 % 97 / 64 - 0.5).view(shape)


IMAGE = (1, 3, 5, 7)
PERTURBED = {
    "an image": (IMAGE, {}),
    "a vector, rows in any order": ((2, 13), {"samples": [5, 0, 5, 1], "rows": [1, 0, 0, 1]}),
    "one element": ((1, 1), {"samples": range(9)}),
    "1021 elements": ((1, 1021), {}),
    "a large image": ((1, 3, 32, 33), {"samples": [1]}),
    "a volume": ((1, 2, 3, 2, 5), {}),
    "a volume, channels last": ((1, 2, 3, 2, 5), {"channels_last": True}),
    "channels last": (IMAGE, {"channels_last": True}),
    "channels last, float16": (IMAGE, {"channels_last": True, "dtype": "float16"}),
    "scale": (IMAGE, {"scale": [4.0, 0.3, 1.7]}),
    "shift": (IMAGE, {"shift": -0.45}),
    "clamp": (IMAGE, {"clamp": (0.0, 1.0)}),
    "all at once": (
        (2, 3, 3, 3),
        {"scale": [4.0, 0.3, 1.7], "shift": [0.1, -2.0, 0.7], "clamp": (-0.1, 1.1), "channels_last": True}
        | {"dtype": "bfloat16", "samples": [3, 1 << 40], "input_ids": [(1 << 32) - 1, 7], "stream": "user"},
    ),
    "large sample indices": ((1, 17), {"samples": [(1 << 32) - 1, 1 << 32, (1 << 40) + 3, (1 << 56) - 1]}),
    "input ids": ((3, 17), {"samples": [8, 8, 8], "input_ids": [0, 1 << 31, (1 << 32) - 1]}),
    **{f"dtype {dtype}": (IMAGE, {"dtype": dtype}) for dtype in ("float32", "float16", "bfloat16", "float64")},
    **{f"stream {name}": ((1, 17), {"stream": name}) for name in ("selection", "estimation", "training", "user")},
    **{f"seed {seed}": ((1, 17), {"seed": seed}) for seed in (0, 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)},
    **{f"sigma {sigma}": ((1, 17), {"noise": rsfast.Gaussian(sigma)}) for sigma in (1e-3, 0.12, 1.0, 50.0)},
}


def perturbed(backend):
    found = {}
    for name, (shape, options) in PERTURBED.items():
        options = {"noise": rsfast.Gaussian(0.25), "seed": 2026, "samples": range(2), "backend": backend} | options
        found[name] = digest(rsfast.ops.perturb(grid(*shape), options.pop("noise"), **options))
    return found


def trained():
    """The noise of the layer: of three forwards one after the other, and none in eval mode."""
    layer, found = rsfast.nn.GaussianNoise(0.25, seed=5), []
    x = grid(3, 3, 4, 5)
    for batch in (x, x.half(), x[:2].to(memory_format=torch.channels_last)):
        found.append(digest(layer(batch)))
    assert torch.equal(layer.eval()(x), x)
    return {"forwards": found, **{name: value.tolist() for name, value in layer.state_dict().items()}}


# Tallies


def logits(rows, classes, special_rows=True):
    """Multiples of 1/4 from -8 to 8, with ties; and rows with NaN, infinities and a masked class."""
    values = (torch.arange(rows * classes) * 2654435761 % (1 << 32) >> 12) % 65 / 4 - 8
    values = values.view(rows, classes)
    if special_rows:
        values[1, 0], values[2, 1], values[3, 0], values[4] = math.nan, math.inf, -math.inf, 1.0
        values[5] = -math.inf
    return values


def accumulated(backend):
    heads = [*HEADS.values(), rsfast.Softmax(3.0), rsfast.Sparsemax(0.25), rsfast.ClippedLogits(-1.0, 0.5)]
    found = {}

    def add(name, batch, rows, inputs=3, heads=heads, tracked=None):
        tally = make_tally(inputs, batch.shape[1], heads, tracked)
        rsfast.ops.accumulate(batch, tally, rows=rows, backend=backend)
        found[name] = {name: digest(values) for name, values in integers(tally).items()}
        return tally

    rows = torch.arange(60) * 7 % 3
    selection = add("four classes", logits(60, 4), rows)
    add("leading classes", logits(60, 4), rows, tracked=rsfast.leading_classes(selection))
    add("three tracked classes", logits(60, 37), rows, tracked=torch.arange(54).view(3, 6, 3) % 37)
    add("many classes", logits(20, 1000), torch.zeros(20, dtype=torch.int64), 1, tracked=torch.full((1, 6, 1), 999))
    add("two classes, votes", logits(60, 2), rows, heads=[HEADS["votes"]])
    add("no votes", logits(60, 5), rows, heads=SOFT)
    add("transposed", logits(5, 60, special_rows=False).T, rows)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        add(str(dtype), logits(60, 10).to(dtype), rows, tracked=torch.arange(18).view(3, 6, 1) % 10)
    return found


def images():
    with np.load(FROZEN / "images.npz") as file:
        return torch.from_numpy(file["images"])


NOISE = rsfast.Gaussian(0.25)
SAMPLED = {"num_classes": frozen_net.CLASSES, "seed": 9, "batch_size": 256}


def sampled():
    x, found = images()[[0, 1, 3, 4]], {}

    def add(name, x=x, noise=NOISE, model=None, **options):
        options = SAMPLED | {"heads": list(HEADS.values()), "n": 200} | options
        tally = rsfast.sample(model or frozen_net.net(), x, noise, **options)
        integers_of = {name: digest(values) for name, values in integers(tally).items()}
        found[name] = [integers_of, tally.provenance.to_dict()]
        return tally

    selection = add("selection", stream="selection", n=40)
    tracked = {NOW["tracked"]: rsfast.leading_classes(selection)}
    whole = add("tracked", **tracked)
    first, rest = add("first", n=120, **tracked), add("rest", n=80, start=120, **tracked)
    assert rest + first == whole
    assert (first + rest).provenance == whole.provenance
    add("stream user", stream="user", n=33)
    add("from far on", start=(1 << 56) - 64, n=64, heads=SOFT)
    add("input ids", input_ids=[3, 1, 1 << 31, (1 << 32) - 1], batch_size=7)
    add("normalised", scale=[2.0, 1.0, 0.5], shift=[-0.5, 0.0, 0.25], clamp=(0.0, 1.0), channels_last=True)
    add("float16", dtype="float16", noise=rsfast.Gaussian(1.0))
    return found


# Certificates


def certified(head, goal):
    """The certificates of all bounds and rules that go with this head and goal; others are refused."""
    found = {}
    x = images()[[0, 1, 4] if head == "votes" else [1, 3]]
    for bound, rule in [("auto", "auto"), *((bound, rule) for bound in BOUNDS for rule in RULES)]:
        options = {"n0": 40, "n": 500, "alpha": 0.01, "head": HEADS[head], "bound": bound, "rule": rule}
        try:
            got = rsfast.certify(frozen_net.net(), x, NOISE, **SAMPLED, **options, **GOALS[goal])
        except ValueError:
            continue
        found[f"{head} {bound} {rule} {goal}"] = [each.to_dict() for each in got]
    return found


def certified_otherwise():
    """Lipschitz constants, several heads, and how else the model is run."""
    model, x = frozen_net.net(), images()[[0, 3]]
    common = {**SAMPLED, "n0": 40, "alpha": 0.01}
    soft = {"head": HEADS["softmax"], "lipschitz": 0.5}
    cases = {
        "lipschitz": soft,
        "lipschitz, scaled": soft | {"scale": [2.0, 4.0, 0.5], "shift": 0.125, "bound": "empirical_bernstein"},
        "lipschitz, small": soft | {"lipschitz": 0.01, "rule": "one_vs_rest"},
        "lipschitz, radius": soft | {"lipschitz": 4.0, "radius": 0.2},
        "many samples": {"n": 5000, "bound": "betting"},
        "clamped": {"clamp": (0.0, 1.0), "channels_last": True, "dtype": "float64", "input_ids": [9, (1 << 32) - 1]},
    }
    found = {name: rsfast.certify(model, x, NOISE, **common, **{"n": 600} | options) for name, options in cases.items()}
    heads, common = list(HEADS.values()), common | {"n": 600}
    for name, options in {"all heads": {}, "all heads, rtol": {"rtol": 0.5}}.items():
        several = rsfast.certify(model, x, NOISE, **common, head=heads, **options)
        assert [*rsfast.certify_each(model, iter(x), NOISE, **common, head=heads, **options)] == several
        found[name] = [certificate for certificates in several for certificate in certificates]
    return {name: [each.to_dict() for each in certificates] for name, certificates in found.items()}


def filled(inputs, n, shares, heads):
    """A Tally with these shares [inputs][classes] of n votes, and scores of about the same mean."""
    tally = make_tally(inputs, len(shares[0]), heads)
    for place, of_classes in enumerate(shares):
        votes = torch.tensor([round(share * n) for share in of_classes])
        tally.n[place], tally.counts[place, :-1], tally.counts[place, -1] = n, votes, n - int(votes.sum())
        for head in range(len(tally.sums[place])):
            for label, count in enumerate(votes.tolist()):
                total = count * ((1 << 30) - 7) // (head + 1)
                tally.sums[place, head, label] = total
                tally.squares[place, head, label] = (
                    total - (-total * total) // (n << 30)
                ) // 2  # between the least and most
    return tally


def of_tallies():
    """Certificates of Tallies, of up to 10^7 samples."""
    found = {}
    shares = [[0.9999, 0, 0.00006, 0.00004, 0], [0.1, 0.05, 0.5, 0.2, 0.14], [0, 1, 0, 0, 0]]
    heads = [HEADS["votes"], HEADS["softmax"]]
    selection = filled(3, 100, shares, heads)
    for n, alpha in ((100_000, 0.001), (10_000_000, 1e-9)):
        estimation = filled(3, n, shares, heads)
        for head, bound, rule in [
            *(("votes", bound, "auto") for bound in BOUNDS[:5]),
            ("votes", "clopper_pearson", "class_partitioning"),
            ("votes", "clopper_pearson", "bonferroni"),
            *(("softmax", bound, rule) for bound in ("hoeffding", "empirical_bernstein") for rule in ("auto", "top_two")),
        ]:
            options = {"head": HEADS[head], "alpha": alpha, "bound": bound, "rule": rule, "seed": 3}
            got = rsfast.certificates(selection, estimation, rsfast.Gaussian(1.0), assume_independent=True, **options)
            found[f"{n} {head} {bound} {rule}"] = [each.to_dict() for each in got]
    return found


def of_samples():
    """Certificates of Tallies that `sample` drew: at once, and in the ranges of a sample that was looked at."""
    x, heads = images()[[0, 1, 3]], list(HEADS.values())

    def draw(start, end, stream, **tracked):
        where = {"n": end - start, "start": start, "stream": stream, "heads": heads}
        return rsfast.sample(frozen_net.net(), x, NOISE, **SAMPLED, **where, **tracked)

    selection = draw(0, 40, "selection")
    tracked = {NOW["tracked"]: rsfast.leading_classes(selection)}
    ends = [0, 16, 24, 32, 48, 64, 96, 128, 192, 256, 300]
    ranges = [draw(start, end, "estimation", **tracked) for start, end in itertools.pairwise(ends)]
    found = {}
    for name, head in HEADS.items():
        got = rsfast.certificates(selection, ranges, NOISE, head=head, alpha=0.01)
        found[f"{name}, ranges"] = got
        got = rsfast.certificates(selection, ranges[:6], NOISE, head=head, alpha=0.01, max_samples=300)
        found[f"{name}, stopped"] = got
    execution = rsfast.Execution(scale=(2.0, 4.0), clamp=(0.0, math.inf), autocast=None, channels_last=True)
    options = {"head": HEADS["sparsemax"], "lipschitz": 1.5, "execution": execution, "backend": "a name"}
    found["lipschitz"] = rsfast.certificates(selection, ranges, NOISE, alpha=0.01, bound="empirical_bernstein", **options)
    return {name: [each.to_dict() for each in certificates] for name, certificates in found.items()}


CERTIFICATES = {
    **{f"{head}, {goal}": lambda head=head, goal=goal: certified(head, goal) for head in HEADS for goal in GOALS},
    "otherwise": certified_otherwise,
    "of tallies": of_tallies,
    "of samples": of_samples,
}


def frozen_certificates(case):
    frozen = load("certificates")
    return {
        name: list(itertools.accumulate(several, operator.or_, initial=frozen["base"]))[1:]
        for name, several in frozen[case].items()
    }


def others():
    """Predictions, the class for Cohen et al.'s loops, the choice of a head, and the noise's potential."""
    model, x = frozen_net.net(), images()
    found = {"STREAM_VERSION": rsfast.STREAM_VERSION, "ABSTAIN": rsfast.ABSTAIN}
    found["predict"] = [
        rsfast.predict(model, x, rsfast.Gaussian(sigma), **SAMPLED, n=n, alpha=alpha)
        for sigma, n, alpha in ((0.25, 100, 0.001), (0.25, 30, 0.2), (0.5, 500, 0.05))
    ]
    tally = rsfast.sample(model, x, NOISE, **SAMPLED, n=80)
    found["predictions"] = [rsfast.predictions(tally, alpha) for alpha in (1e-6, 0.001, 0.3)]
    smooth = rsfast.Smooth(model, frozen_net.CLASSES, 0.25, seed=11, scale=1.5, shift=-0.25)
    found["Smooth"] = [smooth.certify(each, 30, 500, 0.01, 128) for each in x]
    found["Smooth"] += [smooth.predict(each, 100, 0.01, 33) for each in x]
    labels, heads = [2, 0, 1, 3, 0, 1], list(HEADS.values())
    for criterion in ("average_radius", "certified_accuracy", 0.2):
        tuned = rsfast.tune_head(model, x, labels, NOISE, heads, n0=40, n=300, criterion=criterion, **SAMPLED)
        found[f"tune_head {criterion}"] = [tuned.head.to_dict(), [tuned.scores[head] for head in heads]]
    p = [1e-300, 1e-12, 0.001, 0.3, 0.5, 0.50000001, 0.75, 0.99, 1 - 2.0**-40]
    for lipschitz in (None, 1e-9, 0.1, 1.0, 30.0, 1e9):
        found[f"potential, lipschitz {lipschitz}"] = rsfast.Gaussian(0.12).potential(p, lipschitz).tolist()
    return found


# Run folders

COMMON = f"--model frozen_net:net --data images.npz --num-classes {frozen_net.CLASSES} --sigma 0.25 --seed 5 --batch-size 48"
RUNS = {
    "votes": f"certify {COMMON} --n0 40 --n 500",
    "softmax": f"certify {COMMON} --n0 40 --n 120 --head softmax:0.5 --skip 3",
    "radius": f"certify {COMMON} --n0 40 --n 1000 --radius 0.2",
    "rtol": f"certify {COMMON} --n0 40 --n 200 --rtol 0.5 --head sparsemax:2 --alpha 0.05 --start 1 --end 3",
    "other": f"certify {COMMON} --n 300 --head clipped:-4:4 --bound empirical_bernstein --dtype float64 --channels-last "
    "--mean 0.0625 0 0.125 --std 1 0.5 1 --clamp -0.5 2 --start 1 --end 5",
    "predict": f"predict {COMMON} --n 150 --alpha 0.01",
    "first": f"certify {COMMON} --n0 40 --n 500 --end 2",
    "rest": f"certify {COMMON} --n0 40 --n 500 --start 2",
}
DERIVED = {  # with the run that has the same counts
    "again_votes": ("votes", "recertify votes --rule bonferroni --alpha 0.01"),
    "again_softmax": ("softmax", "recertify softmax --bound hoeffding --rule top_two --lipschitz 0.5"),
    "again_radius": ("radius", "recertify radius --alpha 0.05 --rule one_vs_rest"),
    "again_rtol": ("rtol", "recertify rtol --bound betting_sequence --rule bonferroni"),
    "again_other": ("other", "recertify other --bound hoeffding"),
    "merged": ("votes", "merge rest first"),
}
STOPPED = {"votes": 40, "softmax": 6, "radius": 16, "predict": 12}  # and the batch in which a signal comes
MAY_DIFFER = {"command", "started", "versions", "counts_sha256"}


def go(text, out):
    assert main([*text.split(), "--out", out]) == 0


def sidecar(folder):
    return json.loads(Path(folder, "results.json").read_text())


def rows(folder):
    """The fields of the table without its times; the radius as a number where last digits may differ."""
    lines = [line.rsplit("\t", 1)[0].split("\t") for line in Path(folder, "results.tsv").read_text().splitlines()]
    if load("about")["arithmetic"] != fingerprint() and "radius" in lines[0]:
        place = lines[0].index("radius")
        lines[1:] = [[*row[:place], round(float(row[place]), 5), *row[place + 1 :]] for row in lines[1:]]
    return lines


def counts(folder):
    """The lines of counts, byte for byte but for their check sums, which cover the settings, too."""
    lines = Path(folder, "counts.jsonl").read_bytes()
    assert lines.count(b', "crc32": ') == lines.count(b"\n")
    return re.sub(rb', "crc32": \d+\}\n', b"}\n", lines)


def assert_same_run(found, expected):
    assert rows(found) == rows(expected)
    assert counts(found) == counts(DERIVED[expected][0] if expected in DERIVED else expected)


def assert_same_settings(found, expected):
    new = sidecar(found)
    assert new.pop("norm", "l2") == "l2"  # which earlier versions did not write
    assert_frozen(new, {name: value for name, value in sidecar(expected).items() if name not in MAY_DIFFER})


def seal(folder, versions):
    """Write other versions into the sidecar of a run, as only the same versions may resume it, and all check sums anew."""
    settings = sidecar(folder) | {"versions": versions}
    Path(folder, "results.json").write_text(json.dumps(settings, indent=2) + "\n")
    circumstances = {"command", "started", "data", "weights", "first_logits", "recertified_from", "counts_sha256"}
    same = {name: value for name, value in settings.items() if name not in circumstances}
    run = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest().encode()

    def line(text, row=b""):
        body = re.sub(rb', "crc32": \d+\}$', b"", text)
        return b'%b, "crc32": %d}\n' % (body, zlib.crc32(body, zlib.crc32(row, zlib.crc32(run))))

    table = [row.rpartition(b"\t")[0] for row in Path(folder, "results.tsv").read_bytes().splitlines()[1:]]
    lines = Path(folder, "counts.jsonl").read_bytes().splitlines()
    Path(folder, "counts.jsonl").write_bytes(b"".join(map(line, lines, table)))
    if (checkpoint := Path(folder, "checkpoint.jsonl")).exists():
        _, *lines = checkpoint.read_bytes().splitlines()
        checkpoint.write_bytes(json.dumps({"run": run.decode()}).encode() + b"\n" + b"".join(map(line, lines)))


# Tests


@pytest.fixture(autouse=True)
def _looks(monkeypatch):
    monkeypatch.setattr(type(CLASSES["beta_binomial_sequence"]), "analysis_ends", lambda bound, n: analysis_ends(n))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the images and copies of all frozen run folders."""
    shutil.copytree(FROZEN / "runs", tmp_path, dirs_exist_ok=True)
    shutil.copy(FROZEN / "images.npz", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def versions_now():
    go(f"predict {COMMON} --n 1 --end 1 --alpha 0.5", "now")
    return sidecar("now")["versions"]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_noise(backend):
    assert_frozen(perturbed(backend), load("digests")["perturb"])


def test_noise_in_training():
    assert_frozen(trained(), load("digests")["GaussianNoise"])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_tallies(backend):
    assert_frozen(accumulated(backend), load("digests")["accumulate"])


def test_tallies_of_samples():
    assert_frozen(sampled(), load("digests")["sample"])


@pytest.mark.parametrize("case", CERTIFICATES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # that so few samples certify nothing under some bounds
def test_certificates(case):
    found, expected = CERTIFICATES[case](), frozen_certificates(case)
    assert found.keys() == expected.keys()
    assert_frozen(found, expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_predictions_and_other_functions():
    assert_frozen(others(), load("certificates")["others"])


def test_certificates_are_read():
    for certificates in frozen_certificates("otherwise").values():
        for data in certificates:
            read = rsfast.Certificate.from_dict(data)
            assert_frozen(read.to_dict(), data)
            assert rsfast.Certificate.from_dict(read.to_dict()) == read
            assert tuple(read) == (data["prediction"], data["radius"])


def test_saved_tallies_are_read(tmp_path):
    selection, estimation = (rsfast.Tally.load(FROZEN / f"{name}.safetensors") for name in ("selection", "estimation"))
    about = load("digests")["saved"]
    for name, tally in (("selection", selection), ("estimation", estimation)):
        values = {name: digest(values) for name, values in integers(tally).items()}
        assert_frozen([values, tally.provenance.to_dict(), [head.to_dict() for head in tally.heads]], about[name])
        tally.save(tmp_path / "again")
        assert rsfast.Tally.load(tmp_path / "again") == tally
    for head, expected in zip(estimation.heads, about["certificates"], strict=True):
        found = rsfast.certificates(selection, estimation, NOISE, head=head, alpha=0.01)
        assert_frozen([each.to_dict() for each in found], expected)


@pytest.mark.parametrize("name", RUNS)
def test_runs(name, folder):
    go(RUNS[name], "new")
    assert_same_run("new", name)
    assert_same_settings("new", name)
    assert main(["analyze", "new"]) == 0  # which holds all rows against their check sums


@pytest.mark.parametrize("name", DERIVED)
def test_old_runs_are_certified_again_and_merged(name, folder):
    go(DERIVED[name][1], "new")
    assert_same_run("new", name)
    assert_same_settings("new", name)


def test_check_sums_are_of_the_same_text(folder):
    """Else a run of another version, sealed again here, would prove nothing of old runs."""
    for each in folder.iterdir():
        if (each / "counts.jsonl").exists():
            before = {file.name: file.read_bytes() for file in each.iterdir()}
            seal(each, sidecar(each)["versions"])
            assert {file.name: file.read_bytes() for file in each.iterdir()} == before


@pytest.mark.parametrize("name", STOPPED)
def test_runs_that_were_stopped_go_on(name, folder):
    old, now = f"stopped_{name}", versions_now()
    assert Path(old, "checkpoint.jsonl").exists()
    assert len(rows(old)) < len(rows(name))
    if sidecar(old)["versions"] != now:
        seal(old, now)
    go(f"{RUNS[name]} --resume", old)
    assert_same_run(old, name)
    assert not Path(old, "checkpoint.jsonl").exists()


def test_runs_of_other_analyses(folder, monkeypatch, capsys):
    """Those that are finished are certified again; one that was stopped is refused."""
    monkeypatch.setattr(type(CLASSES["beta_binomial_sequence"]), "analysis_ends", lambda bound, n: [*range(10, n, 10), n])
    go(DERIVED["again_radius"][1], "new")
    assert_same_run("new", "again_radius")
    seal("stopped_radius", versions_now())
    with pytest.raises(SystemExit):
        main([*RUNS["radius"].split(), "--resume", "--out", "stopped_radius"])
    assert "schedule_of_analyses must be None, as in stopped_radius" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["votes", "softmax", "radius", "predict"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # that there are no check sums
def test_runs_of_versions_without_check_sums_are_read(name, folder):
    added = {"clamp", "scale", "shift", "reduced_precision", "mode_fixed"}
    older = {key: value for key, value in sidecar(name).items() if key not in added} | {"versions": versions_now()}
    Path(name, "results.json").write_text(json.dumps(older, indent=2) + "\n")
    lines, table = counts(name), Path(name, "results.tsv").read_text()
    shorter, last = table.splitlines(keepends=True)[:-1], lines.splitlines(keepends=True)[:-1]
    Path(name, "results.tsv").write_text("".join(shorter))
    Path(name, "counts.jsonl").write_bytes(b"".join(last))
    go(f"{RUNS[name]} --resume", name)
    assert rows(name) == rows(FROZEN / "runs" / name)
    assert Path(name, "counts.jsonl").read_bytes() == lines  # a run that was begun without check sums goes on so
    if f"again_{name}" in DERIVED:
        go(DERIVED[f"again_{name}"][1], "new")
        assert rows("new") == rows(f"again_{name}")


# Writing


def dump(name, value):
    """Write JSON with a line for each entry of the second level."""
    parts = []
    for key, entries in value.items():
        lines = [f"{json.dumps(entry)}:{json.dumps(each, separators=(',', ':'))}" for entry, each in entries.items()]
        parts.append(json.dumps(key) + ":{\n" + ",\n".join(lines) + "}")
    (FROZEN / f"{name}.json").write_text("{" + ",\n".join(parts) + "}\n")


def write_images():
    net = frozen_net.net()
    strengths = {2: 1 / 2, 0: 1 / 4, 1: 1 / 4, 3: 1 / 8}
    drawn = [(label, strength) for label, strength in [*strengths.items(), (0, 1 / 16), (1, 3 / 8)]]
    weight = net.weight.detach()
    made = [(net.threshold + weight[:, label].sign() * strength).clamp(0, 1) for label, strength in drawn]
    stacked = torch.stack(made).view(-1, 3, 2, 2).numpy()
    np.savez(FROZEN / "images.npz", images=stacked, labels=np.array([label for label, _ in drawn]))


def write_tallies():
    x, about = images()[[1]], {}
    heads = [HEADS["votes"], HEADS["softmax"]]
    selection = rsfast.sample(frozen_net.net(), x, NOISE, **SAMPLED, heads=heads, n=40, stream="selection")
    tracked = {NOW["tracked"]: rsfast.leading_classes(selection)}
    estimation = rsfast.sample(frozen_net.net(), x, NOISE, **SAMPLED, heads=heads, n=500, **tracked)
    for name, tally in (("selection", selection), ("estimation", estimation)):
        tally.save(FROZEN / f"{name}.safetensors")
        values = {name: digest(values) for name, values in integers(tally).items()}
        about[name] = [values, tally.provenance.to_dict(), [head.to_dict() for head in heads]]
    about["certificates"] = [
        [each.to_dict() for each in rsfast.certificates(selection, estimation, NOISE, head=head, alpha=0.01)]
        for head in heads
    ]
    return about


def write_certificates():
    """As what differs from the certificate before, and of the first from the first of all, so that files stay small."""
    cases = {case: make() for case, make in CERTIFICATES.items()}
    base = next(iter(cases["votes, all"].values()))[0]

    def small(several):
        pairs = zip([base, *several], several, strict=False)
        return [{key: value for key, value in each.items() if before[key] != value} for before, each in pairs]

    found = {case: {name: small(several) for name, several in found.items()} for case, found in cases.items()}
    dump("certificates", {"base": base, "others": others(), **found})


def write_runs():
    shutil.rmtree(FROZEN / "runs", ignore_errors=True)
    (FROZEN / "runs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(FROZEN / "runs")
        shutil.copy(FROZEN / "images.npz", ".")
        for name, text in RUNS.items():
            go(text, name)
        for name, (_, text) in DERIVED.items():
            go(text, name)
            Path(name, "counts.jsonl").unlink()  # as in another run
        for name, batch in STOPPED.items():
            numbers = iter(range(1, 1 << 30))
            frozen_net.before_batch = lambda numbers=numbers, batch=batch: (
                next(numbers) == batch and os.kill(os.getpid(), signal.SIGTERM)
            )
            with pytest.raises(SystemExit):
                go(RUNS[name], f"stopped_{name}")
            frozen_net.before_batch = lambda: None
        Path("images.npz").unlink()


def write():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write_images()
    dump("about", {"arithmetic": fingerprint()})
    entries = {"perturb": perturbed("reference"), "GaussianNoise": trained(), "accumulate": accumulated("reference")}
    dump("digests", {**entries, "sample": sampled(), "saved": write_tallies()})
    write_certificates()
    write_runs()


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_frozen.py --write")
    write()
