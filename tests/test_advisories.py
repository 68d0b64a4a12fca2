"""Advisories: malformed lists are errors, and every run that may be affected is named, with what to do."""

import copy
import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import strip_sums
from packaging.version import Version

import rsfast
from rsfast import Gaussian, cli, doctor
from rsfast._versions import __version__
from rsfast.ops import BACKENDS
from rsfast.runs import recalls
from rsfast.runs.advisories import CONDITIONS, Advisory, read_advisories
from rsfast.runs.layout import CERTIFY_COLUMNS, PREDICT_COLUMNS, read_rows, read_sidecar
from rsfast.runs.merge import merge
from rsfast.runs.recertify import recertify
from rsfast.runs.writer import RunWriter

ROOT = Path(__file__).resolve().parent.parent
FROZEN = ROOT / "tests" / "frozen" / "runs"
ONE = {
    "id": "RSFAST-2030-001",
    "date": "2030-02-01",
    "title": "Betting bounds are too large",
    "versions": ">=0.1.0,<0.3.0",
    "stream_versions": [1],
    "wrong": "The lower limit of betting may lie above the exact one.",
    "remedy": "recertify",
    "fixed_in": "0.3.0",
}


def advisory(**changes):
    return Advisory.from_dict({**ONE, **changes})


def write_list(path, *advisories, **changes):
    Path(path).write_text(json.dumps({"format": 1, "updated": "2030-02-01", "advisories": [*advisories], **changes}))
    return str(path)


# The list, and what is malformed


def test_the_list_that_is_shipped():
    """It is well-formed, and every advisory in it is older than the list and names versions that there can be."""
    updated, advisories = read_advisories()
    assert updated <= date.today()
    for each in advisories:
        assert each.date <= updated
        assert each.fixed_in is None or each.fixed_in <= Version(__version__)


def test_the_changelog_names_every_advisory():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert [each.id for each in read_advisories().advisories if each.id not in text] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "2030-1"}, "id must be RSFAST-YEAR-NUMBER, such as RSFAST-2026-001, got '2030-1'"),
        ({"date": "1.2.2030"}, "date must be a date, such as '2026-11-28', got '1.2.2030'"),
        ({"title": " "}, "title must be a text, got ' '"),
        ({"versions": ""}, "versions must be versions, .*, got ''"),
        ({"versions": []}, r"versions must be versions, .*, got \[\]"),
        ({"versions": 0.2}, "versions must be versions, .*, got 0.2"),
        ({"versions": ["<0.3.0", ""]}, "versions must be versions, .*, got "),
        (
            {"versions": "0.2"},
            "versions must be versions, such as '>=0.1,<0.3', or a list of such, with == != .*, got '0.2'",
        ),
        ({"versions": "<=0.2.9"}, "versions must reach to fixed_in, as '<0.3.0' does, .*, got '<=0.2.9'"),
        ({"versions": ">0.1"}, "with == != >= <= < only, got '>0.1'"),
        ({"versions": "~=0.1"}, "with == != >= <= < only, got '~=0.1'"),
        ({"versions": "===0.1"}, "with == != >= <= < only, got '===0.1'"),
        ({"stream_versions": []}, "stream_versions must be a list of int that is not empty"),
        ({"stream_versions": ["1"]}, "stream_versions must be a list of int that is not empty"),
        ({"remedy": "wait"}, "remedy must be one of 'recertify', 'sample again', 'none', got 'wait'"),
        ({"fixed_in": "soon"}, "fixed_in must be a version, or null, got 'soon'"),
        ({"fixed_in": "0.2.9"}, "fixed_in must be a version that is not affected, got 0.2.9"),
        ({"fixed_in": 3}, "fixed_in must be a version, or null, got 3"),
        ({"where": []}, "where must be an object"),
        ({"where": {"boud": ["betting"]}}, "where must be one of 'bound', 'head', "),
        ({"where": {"bound": "betting"}}, "where.bound must be a list of values that is not empty, got 'betting'"),
        ({"where": {"bound": []}}, "where.bound must be a list of values that is not empty"),
        ({"where": {"noise": ["laplace"]}}, "where.noise must be one of 'Gaussian', .*, got 'laplace'"),
        ({"unless": {"lipschitz": [1.0]}}, "unless.lipschitz must be one of None, got 1.0"),
        ({"libraries": {"scipi": "<1.12"}}, "libraries must be one of 'python', 'torch', 'numpy', 'scipy', got 'scipi'"),
        ({"libraries": {"scipy": [["<1.12"]]}}, "libraries.scipy must be versions, such as "),
        ({"severity": "high"}, "its fields must be among .*, got severity"),
    ],
)
def test_a_malformed_advisory_is_an_error(changes, message, tmp_path):
    file = write_list(tmp_path / "list.json", ONE | {"id": "RSFAST-2030-009"}, ONE | changes)
    with pytest.raises(ValueError, match=f"^{file}, advisory 2, is malformed: .*{message}"):
        read_advisories(file)


@pytest.mark.parametrize("name", ONE)
def test_a_field_that_is_missing_is_an_error(name, tmp_path):
    file = write_list(tmp_path / "list.json", {key: value for key, value in ONE.items() if key != name})
    with pytest.raises(ValueError, match=f"advisory 1, is malformed: it must have {name}$"):
        read_advisories(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "the list must be an object, got \\[\\]"),
        ("{}", "it must be an object with format, updated and advisories, a list"),
        ('{"format": 1, "updated": "2030-02-01", "advisories": {}}', "it must be an object with format"),
        ('{"format": 2, "updated": "2030-02-01", "advisories": []}', "format must be 1, got 2; a newer version"),
        ('{"format": true, "updated": "2030-02-01", "advisories": []}', "format must be 1, got True; a newer version"),
        ('{"format": 1, "updated": "2030-02-01", "advisories": [{"versions": "<1", "versions": "<0"}]}', "twice .*versions"),
        ('{"format": 1, "updated": "soon", "advisories": []}', "updated must be a date"),
        ('{"format": 1, "updated": NaN, "advisories": []}', "numbers must be finite"),
    ],
)
def test_a_malformed_list_is_an_error(text, message, tmp_path):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=f"list.json must be a list of advisories of rsfast: .*{message}"):
        read_advisories(tmp_path / "list.json")
    write_list(tmp_path / "list.json", ONE, ONE)
    with pytest.raises(ValueError, match="advisory 2, is malformed: id must be of one advisory, got RSFAST-2030-001 again"):
        read_advisories(tmp_path / "list.json")


def test_conditions_are_on_what_sidecars_record():
    """Under those names, and with the names of all backends."""
    certified, predicted = (read_sidecar(FROZEN / name / "results.json") for name in ("votes", "predict"))
    assert CONDITIONS.keys() - {"top_k"} <= certified.keys()
    of_both = {name for name in CONDITIONS if name in predicted}
    assert CONDITIONS.keys() - of_both == {"bound", "head", "lipschitz", "radius", "rtol", "rule", "top_k"}
    assert set(CONDITIONS["backend"]) == set(BACKENDS)


# Versions


@pytest.mark.parametrize(
    ("versions", "affected", "not_affected"),
    [
        (">=0.2.0,<0.3.0", "0.2.0 0.2.9 0.2.0.dev0 0.2.0rc1 0.3.0.dev0 0.3.0rc2 0.2.1+mine", "0.1.9 0.3.0 0.3.1.dev0 1.0"),
        ("==0.2.0", "0.2.0 0.2.0rc1 0.2.0.dev5 0.2.0+g12", "0.2.1 0.1.0"),
        ("<=0.2.0", "0.1 0.2.0 0.2.0rc1", "0.2.1 0.3.0.dev0"),
        ("==0.2.*", "0.2.0 0.2.5 0.2.0.dev1", "0.3.0"),
        (">=0.1,!=0.2.0", "0.1 0.2.1 0.2.0rc1", "0.2.0 0.0.9"),
        ("<0.2.0.dev1", "0.1 0.2.0.dev0", "0.2.0.dev1 0.2.0rc1 0.2.0"),
        (["<0.1.6", "==0.2.0.dev0"], "0.1.5 0.1.6.dev0 0.2.0.dev0", "0.1.6 0.1.7 0.2.0.dev1 0.2.0rc1 0.2.0"),
    ],
)
def test_a_version_before_a_release_counts_as_the_release_and_as_what_comes_before(versions, affected, not_affected):
    """PEP 440 leaves pre-releases out of a specifier by default, which would call them sound."""
    each = advisory(versions=versions, fixed_in=None)
    assert [v for v in affected.split() if not each.affects_version(v)] == []
    assert [v for v in not_affected.split() if each.affects_version(v)] == []


# Runs

SIDECAR = {
    "n": 100,
    "alpha": 0.001,
    "head": {"name": "Votes"},
    "bound": "betting",
    "rule": "auto",
    "lipschitz": None,
    "radius": None,
    "rtol": None,
    "noise": {"name": "Gaussian", "sigma": 0.5},
    "seed": 1,
    "stream_version": 1,
    "start": 0,
    "end": 2,
    "skip": 1,
    "scale": None,
    "device": "cpu",
    "backend": "cpu",
    "versions": {"rsfast": "0.2.0", "python": "3.12.1", "torch": "2.11.0", "numpy": "2.4.6", "scipy": "1.17.1"},
}
ABSENT = object()


def sidecar(**changes):
    return {name: value for name, value in (SIDECAR | changes).items() if value is not ABSENT}


def write_run(folder, columns=CERTIFY_COLUMNS, **changes):
    settings = sidecar(**changes)
    with RunWriter(folder, settings, columns) as run:
        outcome = SimpleNamespace(prediction=1, radius=0.25) if columns == CERTIFY_COLUMNS else 1
        run.write(settings.get("start", 0), 1, outcome, 1.5, {"estimation": {"n": 100}})
    return str(folder)


def judged(of, *, certificates=True, **changes):
    return of.unknown_of(sidecar(**changes), certificates=certificates)


VERSION = "the version of rsfast"


def with_version(version):
    return SIDECAR["versions"] | {"rsfast": version}


@pytest.mark.parametrize(
    ("conditions", "run", "expected"),
    [
        ({}, {}, []),
        ({}, {"versions": with_version("0.3.0")}, None),
        ({}, {"versions": with_version("0.0.9")}, None),
        ({}, {"versions": ABSENT}, [VERSION]),
        ({}, {"versions": None}, [VERSION]),
        ({}, {"versions": "0.3.0"}, [VERSION]),
        ({}, {"versions": {"torch": "2.11.0"}}, [VERSION]),
        ({}, {"versions": with_version("newest")}, [VERSION]),
        ({}, {"versions": []}, [VERSION]),
        ({}, {"versions": [with_version("0.3.0"), with_version("0.2.0")]}, []),
        ({}, {"versions": [with_version("0.3.0"), None]}, [VERSION]),
        ({}, {"versions": [with_version("0.3.0"), with_version("0.4.0")]}, None),
        ({}, {"stream_version": 2}, None),
        ({}, {"stream_version": ABSENT}, ["stream_version"]),
        ({}, {"stream_version": "1"}, ["stream_version"]),
        ({"where": {"bound": ["betting", "hoeffding"]}}, {}, []),
        ({"where": {"bound": ["hoeffding"]}}, {}, None),
        ({"where": {"bound": ["hoeffding"]}}, {"bound": ABSENT}, ["bound"]),
        ({"where": {"bound": ["hoeffding"]}}, {"bound": ABSENT, "versions": ABSENT}, [VERSION, "bound"]),
        ({"where": {"bound": ["hoeffding"]}}, {"bound": ABSENT, "versions": with_version("0.3.0")}, None),
        ({"where": {"rule": ["top_two"]}}, {}, ["rule"]),
        ({"where": {"rule": ["top_two", "auto"]}}, {}, []),
        ({"where": {"rule": ["top_two"]}}, {"rule": "one_vs_rest"}, None),
        ({"unless": {"rule": ["top_two"]}}, {}, ["rule"]),
        ({"where": {"noise": ["Gaussian"]}}, {}, []),
        ({"where": {"noise": ["Laplace"]}}, {}, None),
        ({"where": {"backend": ["cuda"]}}, {"backend": ["cpu", "cuda"]}, []),
        ({"where": {"backend": ["cuda"]}}, {"backend": []}, ["backend"]),
        ({"where": {"backend": ["cuda"]}}, {"backend": ["cpu", None]}, ["backend"]),
        ({"where": {"bound": ["hoeffding"]}}, {"bound": "Betting"}, ["bound"]),
        ({"where": {"noise": ["Laplace"]}}, {"noise": {}}, ["noise"]),
        ({"where": {"compile": [True]}}, {"compile": "yes"}, ["compile"]),
        ({"unless": {"lipschitz": [None]}}, {}, None),
        ({"unless": {"lipschitz": [None]}}, {"lipschitz": 2.0}, []),
        ({"unless": {"lipschitz": [None]}}, {"lipschitz": ABSENT}, ["lipschitz"]),
        ({"unless": {"radius": [None]}}, {"radius": [0.25, 0.5]}, []),
        ({"unless": {"backend": ["cpu"]}}, {"backend": ["cpu", "cuda"]}, []),
        ({"unless": {"top_k": [1]}}, {}, None),
        ({"unless": {"top_k": [1]}}, {"top_k": 5}, []),
        ({"unless": {"top_k": [1]}}, {"top_k": None}, []),
        ({"unless": {"clamp": [None]}}, {}, ["clamp"]),
        ({"unless": {"clamp": [None]}}, {"clamp": [None, None]}, []),
        ({"where": {"clamp": [None]}}, {"clamp": [0, None]}, None),
        ({"libraries": {"scipy": "<1.12"}}, {}, None),
        ({"libraries": {"scipy": ">=1.17"}}, {}, []),
        ({"libraries": {"scipy": ">=1.17"}}, {"versions": {"rsfast": "0.2.0"}}, ["the version of scipy"]),
    ],
)
def test_whether_a_run_is_affected(conditions, run, expected):
    """None: it is not. A list: it is, or may be, for want of these."""
    assert judged(advisory(**conditions), **run) == expected


def test_predictions_have_no_bound_and_count_votes():
    none = dict.fromkeys(("head", "bound", "rule", "lipschitz", "radius", "rtol"), ABSENT)
    for conditions, expected in [
        ({}, []),
        ({"where": {"bound": ["betting"]}}, None),
        ({"unless": {"lipschitz": [None]}}, None),
        ({"where": {"head": ["Votes"]}}, []),
        ({"where": {"head": ["Softmax"]}}, None),
        ({"where": {"top_k": [1]}}, []),
        ({"unless": {"top_k": [1]}}, None),
        ({"where": {"noise": ["Gaussian"]}}, []),
    ]:
        assert judged(advisory(**conditions), certificates=False, **none) == expected, conditions


AGAIN = {"recertified_from": "run", "versions": with_version("0.3.0")}


@pytest.mark.parametrize(
    ("remedy", "run", "expected"),
    [
        ("recertify", AGAIN | {"sampled_with": with_version("0.2.0")}, None),
        ("sample again", AGAIN | {"sampled_with": with_version("0.2.0")}, []),
        ("none", AGAIN | {"sampled_with": with_version("0.2.0")}, []),
        ("sample again", AGAIN | {"sampled_with": with_version("0.3.0")}, None),
        ("sample again", AGAIN | {"sampled_with": [with_version("0.3.0"), with_version("0.2.0")]}, []),
        ("sample again", AGAIN, [VERSION]),
        ("recertify", AGAIN, None),
        ("sample again", AGAIN | {"versions": with_version("0.2.0"), "sampled_with": with_version("0.0.1")}, []),
        ("sample again", {"versions": with_version("0.3.0"), "sampled_with": with_version("0.2.0")}, []),
        ("recertify", AGAIN | {"versions": with_version("0.2.0"), "sampled_with": with_version("0.0.1")}, []),
    ],
)
def test_the_remedy_says_which_version_counts(remedy, run, expected):
    """Samples of an affected version stay wrong whatever certifies them; proofs of an affected version are mended.

    What it proves from others' samples may be wrong, too. Whether a run was certified again does not depend on fields that
    no check sum covers.
    """
    assert judged(advisory(remedy=remedy), **run) == expected


def test_a_run_that_rests_on_another_may_be_affected_by_its_settings():
    """Of a run that was certified again for its samples, of a changed model for all: the sidecar has its own alone."""
    again = {"recertified_from": "run", "sampled_with": with_version("0.2.0"), "bound": "hoeffding"}
    where = {"bound": ["betting"]}
    assert judged(advisory(where=where), **again) is None
    assert judged(advisory(where=where, remedy="sample again"), **again) == ["bound"]
    assert judged(advisory(unless={"top_k": [1]}, remedy="sample again"), **again) == ["top_k"]
    changed = again | {"rule": "incremental", "bound": "beta_binomial_sequence"}
    assert judged(advisory(where=where), **changed) == ["bound"]
    assert judged(advisory(where={"backend": ["cuda"]}, remedy="sample again"), **changed) == ["backend"]
    assert judged(advisory(where={"backend": ["cpu"]}, remedy="sample again"), **changed) == []


def test_what_is_said_of_a_run(tmp_path):
    run = write_run(tmp_path / "run")
    (finding,) = recalls.of_run([advisory()], run)
    assert finding.sure
    assert finding.lines == [
        "RSFAST-2030-001 (2030-02-01): Betting bounds are too large",
        "  affected: rsfast <0.3.0,>=0.1.0, noise stream 1",
        "  wrong: The lower limit of betting may lie above the exact one.",
        f"  to do: with rsfast 0.3.0 or newer, certify again from its counts: rsfast recertify {run} --out NEW",
    ]
    narrow = {"where": {"bound": ["betting"]}, "unless": {"scale": [None]}, "libraries": {"scipy": "<2"}, "fixed_in": None}
    ((sure, lines),) = recalls.of_run([advisory(**narrow)], write_run(tmp_path / "old", scale=ABSENT))
    assert not sure
    assert lines[1].endswith(", noise stream 1; only where bound is betting and scale is not null and scipy <2")
    assert lines[3] == "  possibly affected, since these are unknown: scale"
    assert lines[4].startswith(
        "  to do: no version is right yet; once one is, certify again from its counts: rsfast recertify "
    )


@pytest.mark.parametrize("name", ["", "results.json", "results.tsv"])
def test_a_run_is_a_folder_or_a_file_in_it(name, tmp_path):
    run = write_run(tmp_path / "run")
    assert recalls.of_run([advisory()], Path(run, name))[0].lines[-1].endswith(f"rsfast recertify {run} --out NEW")


def to_do(tmp_path, remedy, columns=CERTIFY_COLUMNS, **changes):
    run = write_run(tmp_path / "a run", columns, **changes)
    ((_, lines),) = recalls.of_run([advisory(remedy=remedy)], run)
    return lines[-1].rpartition(" or newer, ")[2]


def test_what_to_do_depends_on_the_run(tmp_path):
    assert to_do(tmp_path / "1", "sample again") == "sample again: the command is in its results.json; give it another --out"
    assert to_do(tmp_path / "2", "none") == "  to do: no command mends it; what is wrong, above, says what it means"
    for remedy in ("recertify", "sample again"):  # counts of predictions are not certified again
        assert to_do(tmp_path / remedy, remedy, PREDICT_COLUMNS).startswith("predict again: ")
    again = {"recertified_from": ["a/", "b/"]}  # whose own command samples nothing
    assert to_do(tmp_path / "3", "sample again", **again).startswith(
        "sample again: the command is in the results.json of a/, b/"
    )
    changed = {"rule": "incremental", "recertified_from": "before/"}
    assert (
        to_do(tmp_path / "4", "recertify", **changed)
        == "recertify before/, which it rests on, and the changed model from that"
    )


def test_a_table_without_a_sidecar_may_be_affected(tmp_path):
    (tmp_path / "cohen.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:01\n")
    ((_, lines),) = recalls.of_run([advisory()], tmp_path / "cohen.tsv")
    assert lines[3] == "  possibly affected, since these are unknown: the version of rsfast, stream_version"
    assert lines[4].endswith("make it again: it is a table without the sidecar of a run")


def test_a_damaged_run_is_an_error(tmp_path):
    """As one whose version was edited."""
    run = write_run(tmp_path / "run")
    file = Path(run, "results.json")
    file.write_text(file.read_text().replace('"rsfast": "0.2.0"', '"rsfast": "0.3.0"'))
    with pytest.raises(ValueError, match="run is damaged: the check sum of idx 0"):
        recalls.of_run([advisory()], run)


def test_certificates_in_a_file_may_be_affected(tmp_path):
    """They record how they were made, and not by which version."""
    images = torch.rand(2, 1, 4, generator=torch.Generator().manual_seed(0))
    found = rsfast.certify(torch.nn.Flatten(), images, Gaussian(0.5), num_classes=4, n=100, seed=1)
    file = tmp_path / "found.json"
    file.write_text(json.dumps([each.to_dict() for each in found]))
    ((_, lines),) = recalls.of_run([advisory(where={"bound": ["clopper_pearson"], "dtype": ["float32"]})], file)
    assert lines[3:5] == ["  possibly affected, since these are unknown: the version of rsfast", "  certificates: 2 of 2"]
    assert lines[5].endswith("certify again, or make them of their Tallies with rsfast.certificates")
    assert recalls.of_run([advisory(where={"bound": ["betting"]})], file) == []
    assert recalls.of_run([advisory(where={"dtype": ["bfloat16"]})], file) == []
    ((_, lines),) = recalls.of_run([advisory(unless={"radius": [None]})], file)  # their radius is what was proved
    assert lines[3] == "  possibly affected, since these are unknown: the version of rsfast, radius"
    file.write_text(json.dumps(found[0].to_dict()))
    ((_, lines),) = recalls.of_run([advisory(remedy="none")], file)
    assert lines[4:] == ["  certificates: 1 of 1", "  to do: no command mends it; what is wrong, above, says what it means"]


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"prediction": 1, "radius": 1, "bound": "betting", "execution": 3}', "no JSON"]
)
def test_another_file_is_an_error(text, tmp_path):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"found.json must (be JSON|hold what Certificate.to_dict returns, or a list of it)"
    ):
        recalls.of_run([], tmp_path / "found.json")


# What runs record


def test_a_run_that_was_certified_again_records_what_drew_its_samples(tmp_path):
    """Again and again: `versions` are those of the last step, and the samples stay those of the first."""
    origin = read_sidecar(FROZEN / "votes" / "results.json")["versions"]
    for source, out in ((FROZEN / "votes", tmp_path / "1"), (tmp_path / "1", tmp_path / "2")):
        recertify(source, out, alpha=0.01)
        found = read_sidecar(out / "results.json")
        assert found["sampled_with"] == origin
        assert found["versions"] == doctor.versions()
    by_version = advisory(versions="==0.1.0", fixed_in=None, remedy="sample again")
    assert by_version.unknown_of(found, certificates=True) == []


def write_wrong(folder, version):
    """A run with radii a hundredth too large, as a version with a wrong bound might have written it."""
    sound = read_sidecar(FROZEN / "votes" / "results.json")
    with RunWriter(folder, sound | {"versions": sound["versions"] | {"rsfast": version}}) as run:
        for row in read_rows(FROZEN / "votes", CERTIFY_COLUMNS):
            certificate = SimpleNamespace(prediction=row.predict, radius=row.radius * 1.01)
            run.write(row.idx, row.label, certificate, 1.0, row.counts())
    return folder


def test_a_run_with_wrong_bounds_is_mended_by_recertify(tmp_path, recwarn):
    """Though its rows are not what its counts give now; rows of this very version must be."""
    found = recertify(write_wrong(tmp_path / "wrong", "0.0.9"), tmp_path / "mended")
    assert found.radius.tolist() == pytest.approx(rsfast.results.read(FROZEN / "votes").radius.tolist(), rel=1e-5)
    assert found.radius.max() > 0
    (warning,) = recwarn
    certified = int((found.radius > 0).sum())
    assert str(warning.message).startswith(f"{tmp_path / 'wrong'}: {certified} of {len(found.idx)} rows, first idx 0, have ")
    each = advisory(versions="<0.1", fixed_in="0.1")
    assert recalls.of_run([each], tmp_path / "wrong")[0].sure
    assert recalls.of_run([each], tmp_path / "mended") == []
    assert recalls.of_run([advisory(versions="<0.1", fixed_in="0.1", remedy="sample again")], tmp_path / "mended")[0].sure
    with pytest.raises(ValueError, match="is damaged, or a version of rsfast with other bounds wrote it: idx 0 has predict"):
        recertify(write_wrong(tmp_path / "here", __version__), tmp_path / "refused")
    strip_sums(tmp_path / "wrong")
    with pytest.raises(ValueError, match="is damaged, or a version of rsfast with other bounds wrote it: idx 0 has predict"):
        recertify(tmp_path / "wrong", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_merged_run_records_all_versions(tmp_path):
    """A part that was certified again has the version of its samples, and one that states no version shows as unknown."""
    first, rest = with_version("0.2.0"), with_version("0.4.0")
    parts = [
        write_run(tmp_path / "a", end=1, versions=rest, recertified_from="x", sampled_with=first, counts_sha256="1"),
        write_run(tmp_path / "b", start=1, versions=rest),
        write_run(tmp_path / "c", start=2, end=3, versions=ABSENT),
    ]
    merge(parts[:2], tmp_path / "ab", check_counts=False)
    found = read_sidecar(tmp_path / "ab" / "results.json")
    assert (found["versions"], found["sampled_with"]) == (rest, [first, rest])
    merge(parts[1:], tmp_path / "bc", check_counts=False)
    found = read_sidecar(tmp_path / "bc" / "results.json")
    assert found["versions"] == [rest, None]
    assert "sampled_with" not in found
    assert advisory().unknown_of(found, certificates=True) == [VERSION]
    assert advisory(remedy="sample again").unknown_of(found, certificates=True) == [VERSION]
    merge(parts, tmp_path / "abc", check_counts=False)
    assert read_sidecar(tmp_path / "abc" / "results.json")["sampled_with"] == [first, rest, None]


def test_a_merged_run_does_not_know_what_a_part_does_not_know(tmp_path):
    """Where another part does."""
    parts = [
        write_run(tmp_path / "a", end=1, reduced_precision=None),
        write_run(tmp_path / "b", start=1, backend=ABSENT, device=ABSENT),
    ]
    for order in (parts, parts[::-1]):
        merge(order, tmp_path / "ab", check_counts=False)
        found = read_sidecar(tmp_path / "ab" / "results.json")
        shutil.rmtree(tmp_path / "ab")
        for conditions in ({"where": {"backend": ["cuda"]}}, {"where": {"device": ["cuda"]}}):
            assert advisory(**conditions).unknown_of(found, certificates=True) == [*conditions["where"]]
        each = advisory(unless={"reduced_precision": [None]})
        assert each.unknown_of(found, certificates=True) == ["reduced_precision"]


def test_a_run_of_a_changed_model_records_both_versions(tmp_path, monkeypatch):
    images = torch.rand(2, 1, 4, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 4, bias=False))
    model[1].weight.data = torch.eye(4)

    def make(out, model):
        return rsfast.Run(model, images, Gaussian(0.1), tmp_path / out, num_classes=4, seed=1)

    before = doctor.versions() | {"rsfast": "0.0.9"}
    with monkeypatch.context() as patch:
        patch.setattr("rsfast.runs.run.versions", lambda: before)
        make("before", model).certify(n=1000)
    make("after", copy.deepcopy(model)).recertify(tmp_path / "before", model)
    found = read_sidecar(tmp_path / "after" / "results.json")
    assert found["rule"] == "incremental"
    assert (found["versions"], found["sampled_with"]) == (doctor.versions(), [before, doctor.versions()])
    for version in ("0.0.9", __version__):
        affected = advisory(versions=f"=={version}", fixed_in=None, remedy="sample again")
        assert affected.unknown_of(found, certificates=True) == []


# The command


def run(*arguments):
    return cli.main(["doctor", *map(str, arguments)])


def test_the_exit_status(tmp_path, capsys):
    sound, wrong = write_run(tmp_path / "sound", versions=with_version("0.3.0")), write_run(tmp_path / "wrong")
    listed = write_list(tmp_path / "list.json", ONE)
    assert run("--advisories") == 0
    assert capsys.readouterr().out.startswith(f"rsfast {__version__}: affected by no advisory of the list of ")
    assert run("--advisories", sound, "--advisory-list", listed) == 0
    assert capsys.readouterr().out == f"{sound}: affected by no advisory of the list of 2030-02-01, which holds 1\n"
    assert run("--advisories", sound, wrong, "--advisory-list", listed) == 3
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{sound}: affected by no advisory")
    assert second == f"{wrong}: affected by:"
    assert len(lines) == 4
    unknown = write_run(tmp_path / "unknown", versions=ABSENT)
    assert run("--advisories", unknown, "--advisory-list", listed) == 3
    assert capsys.readouterr().out.startswith(f"{unknown}: possibly affected by:\nRSFAST-2030-001 ")
    affected = write_list(tmp_path / "now.json", ONE | {"versions": f"=={__version__}", "fixed_in": None})
    assert run("--advisories", "--advisory-list", affected) == 3
    assert capsys.readouterr().out.splitlines()[-1].endswith("ask of your runs: rsfast doctor --advisories RUN ...")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--advisories", "none/"], "none must be a run folder or a table, but there is none of that name"),
        (["--advisories", "."], ". must be a run folder or a table, got a folder without results.tsv"),
        (
            ["--advisories", "none.json"],
            "none.json must be a run folder, a table or a file of certificates: No such file or directory",
        ),
        (["--advisory-list", "list.json"], "--advisory-list needs --advisories"),
        (
            ["--advisories", "--advisory-list", "none.json"],
            "--advisory-list must be a file that can be read, got none.json: No such",
        ),
        (["--advisories", "--advisory-list", "."], "--advisory-list must be a file that can be read, got .: Is a directory"),
        (
            ["--advisories", "--advisory-list", "bad.json"],
            "bad.json must be a list of advisories of rsfast: Expecting value",
        ),
        (["--advisory"], "unrecognized arguments: --advisory"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("<html>")
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"rsfast doctor: error: {message}")


def test_it_is_fast(tmp_path):
    """Neither torch nor SciPy is imported."""
    code = """
        import sys
        from rsfast.cli import main
        assert main(sys.argv[1:]) in (0, 3)
        loaded = [name for name in ("torch", "scipy", "matplotlib", "safetensors") if name in sys.modules]
        assert not loaded, loaded
        """
    arguments = ["doctor", "--advisories", FROZEN / "votes", FROZEN / "predict"]
    command = [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines()), *arguments]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)


def test_the_self_test_names_advisories(monkeypatch, tmp_path):
    assert "advisories: no advisory of the list of " in doctor.report()[0]
    affected = read_advisories(write_list(tmp_path / "now.json", ONE | {"versions": f"=={__version__}", "fixed_in": None}))
    monkeypatch.setattr(doctor, "read_advisories", lambda: affected)
    text, healthy = doctor.report()
    assert "advisories: AFFECTED by RSFAST-2030-001; `rsfast doctor --advisories` says by what" in text.splitlines()
    assert healthy
