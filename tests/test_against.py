"""How benchmarks.against compares two commits, and with which."""

import shutil

import pytest

from benchmarks.against import base_of, compared, git, main, measure, report, worktree


def run(machine="a CPU", **ratios):
    """What pytest-benchmark's JSON holds of a run, of which the names that end in _at_most are times."""
    rows = [
        {"what": name, "against": "torch", "ratio": ratio, "at_most": name.endswith("_at_most")}
        for name, ratio in ratios.items()
    ]
    about = {"cpu": {"brand_raw": machine}, "isa": "avx2", "threads": 2, "torch": "2.13.0"}
    return {"table": rows, "machine_info": about, "commit_info": {"id": "0123456789abcdef"}}


def test_speed_and_time():
    """Twice the speed, and half the time, are both twice as fast; a ratio is the median of the runs."""
    before = [run(speed=2.0, time_at_most=1.2), run(speed=4.0, time_at_most=1.2)]
    after = [run(speed=6.0, time_at_most=0.6), run(speed=6.0, time_at_most=0.6)]
    assert compared(before, after)[2:] == ["| speed | torch | 3 | 6 | 2.00 |", "| time_at_most | torch | 1.2 | 0.6 | 2.00 |"]


def test_benchmarks_that_one_commit_lacks():
    assert compared([run(old=2.0)], [run(new=3.0)])[2:] == ["| new | torch |  | 3 |  |", "| old | torch | 2 |  |  |"]


def test_the_report_names_both():
    text = report("v0.1.0", {"before": [run("CPU A")], "after": [run("CPU B", speed=1.0)]}, "the times")
    assert text.startswith("# Benchmarks against v0.1.0\n")
    assert "- before: 0123456789ab on CPU A, avx2, 2 threads, torch 2.13.0\n" in text
    assert "on CPU B" in text
    assert "\n```\nthe times\n```\n" in text


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    for name in ("first", "second", "third"):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        git(tmp_path, *identity, "commit", "--quiet", "--allow-empty", "-m", name)
    return tmp_path


def test_the_base_is_the_last_release(repository):
    """A tag of HEAD itself is not earlier, and another tag no release."""
    assert base_of(repository) == "HEAD^"
    git(repository, "tag", "other", "HEAD^")
    git(repository, "tag", "v0.2.0")
    assert base_of(repository) == "HEAD^"
    git(repository, "tag", "v0.1.0", "HEAD^^")
    assert base_of(repository) == "v0.1.0"


def test_a_shallow_clone_is_an_error(repository, tmp_path_factory):
    """Without HEAD's parent there is nothing to compare with."""
    clone = tmp_path_factory.mktemp("clone")
    git(clone, "clone", "--quiet", "--depth", "1", f"file://{repository}", ".")
    with pytest.raises(SystemExit, match=r"git tag .*HEAD\^.* in .*: fatal: malformed object name HEAD\^"):
        base_of(clone)


def test_a_base_that_is_no_commit_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.argv", ["against", "--base", "v9"])
    with pytest.raises(SystemExit, match=r"git rev-parse v9.*fatal:"):
        main()


def test_a_worktree_that_was_removed_is_made_again(repository, monkeypatch):
    """By make clean, say."""
    monkeypatch.setattr("benchmarks.against.ROOT", repository)
    commit = git(repository, "rev-parse", "HEAD^")
    for _ in range(2):
        tree = worktree(commit)
        assert git(tree, "rev-parse", "HEAD") == commit
        shutil.rmtree(tree)


def test_a_benchmark_that_fails_ends_the_comparison(tmp_path):
    (tmp_path / "Makefile").write_text("bench:\n\t@false\n")
    with pytest.raises(SystemExit, match=r"make bench failed in .* got '-k nothing'"):
        measure(tmp_path, tmp_path / "run.json", "-k nothing")
