"""rsfast.Run on a Dataset: the rows of a tensor, read by workers or not; names, labels that come with images, and skips."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from conftest import LINEAR_NETS, integers, readers, rows, sidecar

import rsfast
from rsfast import Gaussian, GridGaussian, Run
from rsfast.cli import main
from rsfast.engine.inputs import Inputs, Unreadable
from rsfast.runs import results
from rsfast.runs.environment import Environment, Stopped
from rsfast.runs.images import Images
from rsfast.runs.layout import SKIPPED, Skipped
from rsfast.runs.merge import merge
from rsfast.runs.recertify import recertify

LABELS = [0, 1, 2, 3, 0, 1, 2, 3]
NAMES = [f"class {label}/{place}.png" for place, label in enumerate(LABELS)]
EVERY_BATCH = Environment(say=lambda _: None, checkpoint_every=0.0, checkpoint_share=0.0)


def images(kind=torch.float32):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 2, 2), dtype=np.uint8))
    return pixels if kind == torch.uint8 else pixels / 255


class Pictures(torch.utils.data.Dataset):
    """Images, some of which cannot be read, with the attributes that are given; items are pairs if `pairs` holds labels."""

    def __init__(self, bad=(), pairs=None, images=None, **attributes):
        self.images, self.bad, self.pairs, self.read = globals()["images"]() if images is None else images, bad, pairs, []
        vars(self).update(attributes)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.bad:
            raise Unreadable(f"broken at byte {index}")
        return self.images[index] if self.pairs is None else (self.images[index], self.pairs[index])


@pytest.fixture(autouse=True)
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "image_nets.py").write_text(LINEAR_NETS)
    import image_nets

    return image_nets.Net()


def make(net, data, out="run", noise=None, **options):
    options = {"num_classes": 4, "seed": 3, "batch_size": 50, "environment": EVERY_BATCH} | options
    return Run(net, data, noise or Gaussian(0.5), out, **options)


def whole(net, out="whole", **options):
    """The run of the tensor."""
    return make(net, images(), out, labels=LABELS, **options).certify(n=300)


def same(out, skipped=(), whole="whole"):
    """Whether `out` has the rows and counts of the whole run, but for what was skipped and for names."""
    skipped = set(map(str, skipped))
    assert rows(out) == [line for line in rows(whole) if line.split("\t")[0] not in skipped]
    assert counts(out) == [line for line in counts(whole) if str(line["idx"]) not in skipped]


def counts(folder):
    """The lines of counts, without the names in them."""
    return [{name: value for name, value in line.items() if name != "name"} for line in integers(folder)]


# The same as a tensor


@pytest.mark.parametrize(
    "data",
    [
        Pictures(labels=LABELS),
        Pictures(targets=torch.tensor(LABELS), digest="d1"),
        Pictures(pairs=LABELS),
        Pictures(pairs=[torch.tensor(label) for label in LABELS]),
        torch.utils.data.TensorDataset(images(), torch.tensor(LABELS)),
    ],
)
def test_a_dataset_gives_what_a_tensor_gives(data, net):
    """Rows, and counts byte for byte but for check sums; another digest tells the data apart."""
    expected = whole(net)
    found = make(net, data).certify(n=300)
    same("run")
    assert sidecar("run") == sidecar("whole") | {name: sidecar("run")[name] for name in ("started", "data_sha256")}
    assert (found.names, found.class_names, found.skipped) == (None, None, [])
    assert found.label.tolist() == expected.label.tolist() == LABELS


def test_predictions_and_bytes(net):
    """Of uint8 images, for noise that takes them."""
    for out, data in (("whole", images(torch.uint8)), ("run", Pictures(images=images(torch.uint8)))):
        found = make(net, data, out, GridGaussian(0.25), start=1, skip=3).predict(60, 0.05)
        assert found.idx.tolist() == [3, 6]
        assert not found.labelled
    same("run")


def test_labels_that_are_given_come_first(net):
    given = LABELS[::-1]
    found = make(net, Pictures(labels=LABELS, pairs=LABELS), labels=given).certify(n=100)
    assert found.label.tolist() == given


def test_names(net):
    """They stand in counts.jsonl after the idx, and class names in the sidecar; every way of writing a run keeps both."""
    whole(net)
    data = Pictures(labels=LABELS, names=[f'"{name}" é' for name in NAMES], class_names=("a", "b", "c", "d"))
    found = make(net, data).certify(n=300)
    same("run")
    assert found.names == data.names
    assert found.class_names == sidecar("run")["class_names"] == ["a", "b", "c", "d"]
    line = Path("run/counts.jsonl").read_text().splitlines()[3]
    assert list(json.loads(line)) == ["idx", "name", "selection", "estimation", "crc32"]
    assert recertify("run", "again", alpha=0.01).names == data.names
    for out, part in (("a", {"end": 3}), ("b", {"start": 3})):
        make(net, data, out, **part).certify(n=300)
    merge(["b", "a"], "merged")
    assert results.read("merged").names == data.names
    assert results.read("merged").class_names == found.class_names


def test_class_names_of_another_number_are_left_out(net):
    said = []
    found = make(net, Pictures(class_names=["a", "b"]), environment=Environment(say=said.append)).certify(n=100)
    assert found.class_names is None
    assert said == ["warning: 2 names of classes are left out, as num_classes is 4"]


def test_what_a_run_is_known_by(net):
    """The same model on other data, or prepared in another way, is another run."""
    about = {"preprocessing": {"size": [2, 2]}, "checkpoint": "a.pth", "class_names": ["a", "b", "c", "d"]}
    with pytest.raises(TypeError, match=r"preprocessing in about must be a dict of plain JSON values, or None, got 'x'"):
        make(net, Pictures(), about={"preprocessing": "x"})
    make(net, Pictures(pairs=LABELS), about=about).certify(n=100)
    assert {name: sidecar("run")[name] for name in about} == about

    def again(data=None, labels=None, **changed):
        data = Pictures(pairs=LABELS) if data is None else data
        return make(net, data, labels=labels, about=about | changed, resume=True).certify(n=100)

    again(checkpoint="b.pth")
    for changed in ({"preprocessing": {"size": [2, 3]}}, {"preprocessing": None}, {"class_names": list("abce")}):
        with pytest.raises(ValueError, match=rf"{next(iter(changed))} must be "):
            again(**changed)
    for data in (Pictures(pairs=LABELS, images=images().flip(0)), Pictures(pairs=LABELS, names=NAMES), Pictures(digest="x")):
        with pytest.raises(ValueError, match="data_sha256 must be "):
            again(data)
    with pytest.raises(ValueError, match="data_sha256 must be "):
        again(labels=LABELS[::-1])
    assert make(net, Pictures(digest="x", labels=LABELS), "other").certify(n=100).sidecar["data_sha256"] == "x"


def test_a_dataset_is_read_once_and_in_order(net):
    """But for the first items, by which the data is known again; with a digest, for the first only."""
    data = Pictures(labels=LABELS, digest="x")
    make(net, data, start=2).certify(n=100)
    assert data.read == [0, 2, 3, 4, 5, 6, 7]


# Workers


@pytest.fixture
def module(tmp_path):
    """The Datasets of this file as a module that workers can import."""
    source = Path(__file__).read_text()
    imports = "import torch, numpy as np\nfrom rsfast.engine.inputs import Unreadable\n"
    classes = source[source.index("def images(") : source.index("@pytest.fixture(autouse")]
    (tmp_path / "image_data.py").write_text(imports + classes)
    import image_data

    return image_data


@pytest.mark.slow
def test_workers(net, module):
    """As many as are asked for; with names, labels and skips."""
    whole(net)
    options = {"bad": (1, 7), "pairs": LABELS, "names": NAMES}
    alone = make(net, module.Pictures(**options), "alone").certify(n=300)
    found = make(net, module.Pictures(**options), workers=2).certify(n=300)
    same("run", [1, 7])
    assert Path("run/counts.jsonl").read_bytes().count(b"\n") == 6
    assert found.skipped == alone.skipped == [Skipped(index, NAMES[index], f"broken at byte {index}") for index in (1, 7)]
    assert Path("run", SKIPPED).read_text().count("\n") == 2
    assert not readers()


KILLED = """
    import os, signal, sys, time
    import image_data, image_nets, torch
    from rsfast import Gaussian, Run

    class Slow(image_data.Pictures):
        def __getitem__(self, index):
            time.sleep(0.2)
            held = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            open(f"pid {os.getpid()} {held}", "w").close()
            return super().__getitem__(index)

    if __name__ == "__main__":
        data = Slow(bad=(2,), images=image_data.images().repeat(4, 1, 1, 1), digest="x")
        Run(image_nets.Net(), data, Gaussian(0.5), "run", num_classes=4, seed=3, batch_size=50, workers=2).certify(n=300)
"""


def alive(session):
    """The processes of a session: those that a command has started, and it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(("number", "group"), [(signal.SIGKILL, False), (signal.SIGINT, True)])
def test_no_worker_outlives_its_run(number, group, net, module):
    """Killed, or told to stop as a terminal does, which tells the workers, too. What was written is a run to resume."""
    Path("killed.py").write_text(textwrap.dedent(KILLED))
    env = os.environ | {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "killed.py"]
    process = subprocess.Popen(command, env=env, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not Path("run/results.tsv").exists() or len(rows("run")) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    (os.killpg if group else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    if group:
        assert "samples of other images are saved; --resume goes on" in said
    # Two workers, which Ctrl-C does not reach, and what tried the model.
    assert sorted(file.name.split()[2] for file in Path().glob("pid *")) == ["False", "True", "True"]
    deadline = time.monotonic() + 60
    while alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    data = module.Pictures(bad=(2,), images=images().repeat(4, 1, 1, 1), digest="x")
    assert 2 <= len(results.read("run").idx) < 31
    make(net, data, resume=True).certify(n=300)
    make(net, data, "whole").certify(n=300)
    same("run")


def test_what_workers_cannot_be_given(net):
    data = Pictures(transform=lambda image: image)
    with pytest.raises(TypeError, match=r"images must be a Dataset that pickle takes, with workers = 2, .* a Pictures"):
        make(net, data, workers=2)
    with pytest.raises(ValueError, match=r"workers must be from 0 to \d+, 8 for each core here, got -1"):
        make(net, data, workers=-1)
    with pytest.raises(ValueError, match=r"workers must be from 0 .*, got 100000; 0 reads"):
        make(net, data, workers=100_000)
    with pytest.raises(TypeError, match=r"workers must be an int, got 'two'"):
        make(net, data, workers="two")
    make(net, images(), workers=2).predict(20, 0.5)  # a tensor needs none
    assert not Path("run", SKIPPED).exists()


# Images that cannot be read


@pytest.mark.parametrize("bad", [(4,), (0,), (7,), (0, 1, 2), (3, 4, 7), (0, 1, 2, 3, 4, 5, 7)])
def test_an_image_that_cannot_be_read_is_skipped(bad, net):
    whole(net)
    said = []
    data = Pictures(bad, labels=LABELS, names=NAMES, digest="x")
    found = make(net, data, environment=Environment(say=said.append)).certify(n=300)
    same("run", bad)
    assert said == [
        f"warning: images[{index}] ({NAMES[index]}) cannot be read and is skipped: broken at byte {index}" for index in bad
    ]
    assert found.skipped == [Skipped(index, NAMES[index], f"broken at byte {index}") for index in bad]
    assert found.names == [name for place, name in enumerate(NAMES) if place not in bad]
    assert found.images_missing == 0
    assert results.progress(found, " images") == f"{8 - len(bad)} of 8 images, {len(bad)} skipped"
    before = {file: file.read_bytes() for file in Path("run").iterdir()}
    data.bad = () if 0 not in bad else bad  # what was skipped stays so
    assert make(net, data, resume=True).certify(n=300).skipped == found.skipped
    assert {file: file.read_bytes() for file in Path("run").iterdir()} == before


def test_without_a_name_the_idx_tells(net):
    whole(net)
    found = make(net, Pictures((5,), labels=LABELS), skip=5).certify(n=300)
    assert found.skipped == [Skipped(5, None, "broken at byte 5")]
    assert json.loads(Path("run", SKIPPED).read_text()).keys() == {"idx", "reason", "crc32"}
    Path("run", SKIPPED).unlink()  # removed, its images are read again
    assert results.read("run").images_missing == 1
    found = make(net, Pictures(labels=LABELS, digest=sidecar("run")["data_sha256"]), skip=5, resume=True).certify(n=300)
    assert (found.idx.tolist(), found.skipped) == ([0, 5], [])


def test_no_image_can_be_read(net):
    with pytest.raises(ValueError, match=r"images must hold one that can be read, got none of 8; images\[0\]: broken at "):
        make(net, Pictures(range(8)))
    assert not Path("run").exists()
    run = make(net, Pictures(range(4, 8)), start=4)
    with pytest.raises(ValueError, match=r"images must hold one that can be read, got none of 4; run/skipped\.jsonl says"):
        run.certify(n=100)


@pytest.mark.parametrize("call", [rsfast.certify, rsfast.certify_each])
def test_elsewhere_it_is_an_error(call, net):
    with pytest.raises(Unreadable, match="broken at byte 2") as raised:
        list(call(net, Pictures((2,)), Gaussian(0.5), num_classes=4, n=50))
    assert raised.value.__notes__ == ["inputs raised this when inputs[2] was read"]


def test_inputs_skip_what_is_given_in_place_of_an_input():
    """Also where the first ones are; ids name the others."""
    x = torch.eye(4)
    items = [Unreadable("a"), x[0], Unreadable("b"), Unreadable("c"), x[1], Unreadable("d")]
    skipped = []
    with Inputs(items, range(10, 16), skip=lambda index, error: skipped.append((index, str(error)))) as inputs:
        assert skipped == [(10, "a")]
        assert inputs.first.tolist() == x[0].tolist()
        assert [(index, row.tolist()) for index, row in inputs] == [(11, x[0].tolist()), (14, x[1].tolist())]
    assert skipped == [(10, "a"), (12, "b"), (13, "c"), (15, "d")]
    with pytest.raises(Unreadable, match="inputs must hold at least one that can be read, got none of 1"):
        Inputs(items[:1], skip=lambda *_: None)
    with pytest.raises(Unreadable, match=r"^a"):
        Inputs(items)


@pytest.mark.parametrize("pairs", [None, LABELS])
@pytest.mark.parametrize("radius", [None, 0.3])
def test_stopped_and_resumed(pairs, radius, net):
    """At every few batches: rows, counts and skips are those of a run that never stopped."""
    options = {"n": 300, "radius": radius}
    attributes = {"names": NAMES, "pairs": pairs, **({"labels": LABELS} if pairs is None else {})}
    data = Pictures((0, 3, 7), **attributes)
    calls = []
    hook = net.register_forward_pre_hook(lambda *_: calls.append(0))
    make(net, data, "whole").certify(**options)
    batches = len(calls)
    hook.remove()
    stops = 0
    for batch in range(3, batches, 7):
        left = [batch]

        def stopping(*_, left=left):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        hook = net.register_forward_pre_hook(stopping)
        out = f"run{batch}"
        with pytest.raises(Stopped):
            make(net, data, out).certify(**options)
        hook.remove()
        stops += 1
        found = make(net, data, out, resume=True).certify(**options)
        same(out)
        assert [each.idx for each in found.skipped] == [0, 3, 7]
        assert sorted(file.name for file in Path(out).iterdir()) == sorted(file.name for file in Path("whole").iterdir())
    assert stops > 2


class Stopping(Pictures):
    """When an image is read, the run is told to stop, and so are those who read for it."""

    at = None

    def __getitem__(self, index):
        if index == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("the worker is gone")
        return super().__getitem__(index)


@pytest.mark.parametrize("at", [2, 5])
def test_a_signal_that_ends_the_reading_too_is_a_stop(at, net):
    """With the first image that is read, or when only reading is left to do."""
    whole(net)
    data = Stopping(labels=LABELS, digest="x")
    run = make(net, data, start=2, batch_size=400)
    data.at = at
    with pytest.raises(Stopped, match=r"^terminated; rows in run: "):
        run.certify(n=300)
    data.at = None
    make(net, data, start=2, batch_size=400, resume=True).certify(n=300)
    same("run", (0, 1))


def test_parts_are_merged_with_their_skips(net, capsys):
    whole(net)
    data = Pictures((1, 5), labels=LABELS, names=NAMES)
    for out, part in (("a", {"end": 4}), ("b", {"start": 4, "end": 6}), ("c", {"start": 6})):
        make(net, data, out, **part).certify(n=300)
    done, missing = merge(["c", "a", "b"], "merged")
    assert (done, missing) == ([0, 2, 3, 4, 6, 7], [])
    same("merged", (1, 5))
    found = results.read("merged")
    assert [each.idx for each in found.skipped] == [1, 5]
    assert (found.images_missing, results.progress(found)) == (0, "6 of 8, 2 skipped")
    assert [each.idx for each in recertify("merged", "again", rule="top_two").skipped] == [1, 5]
    with pytest.raises(ValueError, match=r"idx 0 must be in one part, once"):
        merge(["merged", "a"], "twice")
    capsys.readouterr()
    main(["merge", "c", "a", "b", "--out", "by command"])
    assert capsys.readouterr().out == "by command: 6 images and 2 skipped from 3 run folders\n"


SHARED = """
    import image_data, image_nets, sys, torch
    from rsfast import Gaussian, Run

    torch.distributed.init_process_group("gloo")
    sys.stderr = open(f"said {torch.distributed.get_rank()}", "w")
    bad, labels, names = eval(sys.argv[1])
    for shard in ("inputs", "samples"):
        data = image_data.Pictures(bad, pairs=labels, names=names)
        run = Run(image_nets.Net(), data, Gaussian(0.5), shard, num_classes=4, seed=3, batch_size=50, shard=shard)
        assert len(run.certify(n=300).skipped) == len(bad)
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("module")
def test_processes_that_share(net):
    """Inputs, where all of one process are unreadable, and samples: the run of one process, and each skip is said once."""
    bad = (1, 3, 4, 5, 7)
    make(net, Pictures(bad, pairs=LABELS, names=NAMES), "whole").certify(n=300)
    Path("shared.py").write_text(textwrap.dedent(SHARED))
    assert programs.run_ranks(2, "shared.py", repr((bad, LABELS, NAMES))) == [0, 0]
    for shard in ("inputs", "samples"):
        assert rows(shard) == rows("whole")
        for file in ("counts.jsonl", SKIPPED):
            assert Path(shard, file).read_bytes() == Path("whole", file).read_bytes()
        assert sorted(file.name for file in Path(shard).iterdir()) == sorted(file.name for file in Path("whole").iterdir())
    said = "".join(path.read_text() for path in Path().glob("said *"))
    assert said.count("cannot be read and is skipped") == 2 * len(bad)


def test_damage_and_cuts(net):
    """A line that was changed, doubled or comes from elsewhere is refused by every reader; one that was cut off goes."""
    data = Pictures((1, 5), labels=LABELS)
    make(net, data).certify(n=100)
    file = Path("run", SKIPPED)
    whole = file.read_bytes()
    first = whole.splitlines(keepends=True)[0]
    bad = {
        whole.replace(b"broken at byte 5", b"broken at byte 6"): "line 2, is damaged",
        whole + first: "line 3, is damaged; remove it, and --resume tries its images again (ValueError: idx 1 is there twi",
        b'{"idx": 3, "reason": "x"}\n': "line 1, is damaged",
        b"[]\n": "line 1, is damaged",
    }
    for text, message in bad.items():
        file.write_bytes(text)
        for read in (
            lambda: results.read("run"),
            lambda: merge(["run"], "merged"),
            lambda: recertify("run", "again", alpha=0.1),
            lambda: make(net, data, resume=True).certify(n=100),
        ):
            with pytest.raises(ValueError, match=re.escape(f"{file}, {message}")):
                read()
        assert file.read_bytes() == text
    file.write_bytes(whole[:-5])
    assert [each.idx for each in results.read("run").skipped] == [1]
    make(net, data, resume=True).certify(n=100)
    assert file.read_bytes() == whole


def test_a_skip_is_an_event_and_a_note(net):
    found = make(net, Pictures((0, 6), names=NAMES), log_json="log.jsonl").certify(n=100)
    events = list(map(json.loads, Path("log.jsonl").read_text().splitlines()))
    skips = [(event["idx"], event["reason"]) for event in events if event["event"] == "skip"]
    assert skips == [(0, "broken at byte 0"), (6, "broken at byte 6")]
    end = events[-1]
    assert (end["event"], end["images_done"], end["images_skipped"], end["images_total"]) == ("end", 6, 2, 8)
    assert end["seconds_left"] == 0
    note, _ = results.notes({"run": found})
    assert note == "run: images that could not be read count nowhere: class 0/0.png and 1 more."


# Refused


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(images())

    def __len__(self):
        return 8


@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [
        (
            {"labels": [*LABELS[:6], 4, 9], "names": NAMES},
            ValueError,
            "images.labels must be from 0 to 3, got 0 to 9: 4 for ",
        ),
        ({"targets": [0]}, ValueError, "images.targets must be one an image, 8 in all, got 1"),
        ({"pairs": [9] * 8}, ValueError, "label of images[0] must be from 0 to 3, got 9"),
        ({"pairs": ["cat"] * 8}, TypeError, "label of images[0] must be an int, got 'cat'"),
        ({"names": ["a"]}, ValueError, "images.names must be one an image, 8 in all, got 1"),
        ({"names": range(8)}, TypeError, "images.names must be a sequence of str, got one with 0"),
        ({"class_names": "cat"}, TypeError, "images.class_names must be a sequence of str, got 'cat'"),
        ({"digest": b"x"}, TypeError, "images.digest must be a str, a SHA-256 of the data, got b'x'"),
        ({"images": images()[:0]}, ValueError, "images must hold at least one image, got a Dataset of length 0"),
        ({"images": images().double()}, TypeError, "images[0] must have dtype float32, got torch.float64"),
        ({"images": images().numpy()}, TypeError, "images[0] must be a dense float32 tensor [*shape], got a ndarray; pass "),
    ],
)
def test_bad_datasets(attributes, error, message, net):
    with pytest.raises(error, match=re.escape(message)):
        make(net, Pictures(**attributes))
    assert not Path("run").exists()


def test_a_stream_is_no_dataset(net):
    with pytest.raises(TypeError, match=r"images must be a tensor, .*, or a Dataset with __len__ .*, got a Stream"):
        make(net, Stream())


def with_sixth(values, value):
    return [*values[:5], value, *values[6:]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"images": with_sixth(images(), images()[5][:1])},
            r"must have shape \[3, 2, 2\], as the first .*, got \[1, 2, 2\]; ",
        ),
        ({"images": with_sixth(images(), images()[5] / 0)}, "must be finite, got NaN or infinity"),
        ({"pairs": with_sixth(LABELS, 4)}, "must be from 0 to 3, got 4"),
        ({"pairs": with_sixth(LABELS, 3), "labels": LABELS}, r"must be 1, as in images\.labels, got 3; pass labels="),
    ],
)
@pytest.mark.parametrize("start", [0, 5])
def test_an_image_that_is_wrong_ends_the_run(start, changed, message, net):
    """It is named, also where it is the first that is sampled; the rows before are kept."""
    run = make(net, Pictures(names=NAMES, digest="x", **changed), start=start)
    with pytest.raises(ValueError, match=rf"images\[5\] \(class 1/5\.png\) {message}"):
        run.certify(n=300)
    assert [line.split("\t")[0] for line in rows("run")[1:]] == [str(index) for index in range(start, 5)]


def test_images_of_a_tensor():
    data = Images(images(), None, 4, Gaussian(0.5), workers=3)
    assert data.title(3) == "images[3]"
    assert (len(data), data.name(3), data.label(3)) == (8, None, -1)
    assert [image.tolist() for image in data.read([2, 5], torch.device("cpu"))] == images()[[2, 5]].tolist()
