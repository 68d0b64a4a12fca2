"""rsfast.loading.weights: of a file the state_dict that fits is loaded, whole, and what was read otherwise is said."""

import argparse
import json
import os
import pickle
import random
import re
import struct
import warnings
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from rsfast._digests import state_dict_sha256
from rsfast.loading.weights import load_weights


def network(seed=0, wrap=nn.Identity):
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(4, 3))
    return inner if wrap is nn.Identity else wrap(inner)


class Nested(nn.Module):
    """A part of it is wrapped, as the features of VGG were in PyTorch's examples."""

    def __init__(self, wrap=nn.Identity):
        super().__init__()
        self.features = nn.Linear(2, 3) if wrap is nn.Identity else wrap(nn.Linear(2, 3))
        self.head = nn.Linear(3, 2)


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


STATE = network(1).state_dict()
OTHER = network(2).state_dict()


def load(checkpoint, module=None, file="w.pt"):
    """What is said of loading this into a module, whose weights are then those of STATE."""
    module = network() if module is None else module
    torch.save(checkpoint, file)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_weights(module, "nets:network", file)
    assert [value.tolist() for value in module.state_dict().values()] == [value.tolist() for value in STATE.values()]
    assert all(each.category is UserWarning for each in said)
    return [str(each.message).removeprefix(f"weights {file}: ") for each in said]


def fails(module, file="w.pt", message=""):
    with pytest.raises(ValueError, match=f"(?s)^weights {file}.*{re.escape(message)}") as raised:
        load_weights(module, "nets:network", file)
    return str(raised.value)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_what_fits_as_it_is_needs_no_word(tmp_path):
    assert load(STATE) == []
    for name in ("w.safetensors", "w.bin"):  # known by what it holds, too
        safetensors.torch.save_file(STATE, name)
        module = network()
        load_weights(module, "nets:network", name)
        assert state_dict_sha256(module) == state_dict_sha256(network(1))
    torch.save(STATE, "legacy.pt", _use_new_zipfile_serialization=False)
    module = network()
    load_weights(module, "nets:network", "legacy.pt")
    assert state_dict_sha256(module) == state_dict_sha256(network(1))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "module.model.", "_orig_mod.module.", "model._orig_mod.", "a.b.c."]
)
def test_a_prefix_that_all_names_share_is_left_out(prefix):
    assert load(prefixed(STATE, prefix)) == [f"read {prefix}0.weight as 0.weight, and 8 more names so"]


def test_a_prefix_that_some_names_have_is_not_left_out():
    state = prefixed(STATE, "model.") | {"loss.weight": torch.zeros(2)}
    torch.save(state, "w.pt")
    said = fails(network(), message="9 missing, such as 0.weight, 10 unexpected, such as model.0.weight")
    assert said.endswith(
        "; the file holds model.0.weight, model.0.bias, model.1.weight, model.1.bias, "
        "model.1.running_mean, model.1.running_var, model.1.num_batches_tracked, model.2.weight, and 2 more"
    )


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda inner: torch.compile(nn.DataParallel(inner))])
def test_a_model_that_is_wrapped_takes_the_names_of_one_that_is_not(wrap):
    (said,) = load(STATE, network(0, wrap))
    assert re.fullmatch(r"read 0\.weight as (_orig_mod\.|module\.)+0\.weight, and 8 more names so", said)
    if wrap is not torch.compile:
        assert load(network(1, wrap).state_dict(), network(0, wrap)) == []
        assert load(network(1, torch.compile).state_dict(), network(0, wrap))[0].startswith("read _orig_mod.0.weight as ")


def test_a_prefix_that_the_model_has():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = network()

    assert load(STATE, Holder()) == ["read 0.weight as backbone.0.weight, and 8 more names so"]


def test_a_wrapped_part():
    for theirs, ours in ((nn.DataParallel, nn.Identity), (nn.Identity, torch.compile)):
        module, other = Nested(ours), Nested(theirs)
        torch.save(other.state_dict(), "w.pt")
        with pytest.warns(UserWarning, match=r"read features.*weight as features.*weight, and 1 more names so$"):
            load_weights(module, "nets:network", "w.pt")
        assert torch.equal(*(each(torch.ones(1, 2)) for each in (module.features, other.features)))


@pytest.mark.parametrize("name", ["state_dict", "model", "net", "model_state_dict", "ema", "weights", "a.b"])
def test_the_entry_that_fits_is_taken(name):
    optimizer = torch.optim.Adam(network().parameters())
    network()(torch.ones(1, 1, 2, 4)).sum().backward()
    checkpoint = {"epoch": 3, "optimizer": optimizer.state_dict(), "best": torch.tensor(0.5), name: STATE, "ids": {1: 2}}
    assert load(checkpoint) == [f"took its entry {name}"]
    checkpoint[name] = prefixed(STATE, "module.")
    assert load(checkpoint) == [f"took its entry {name}, read module.0.weight as 0.weight, and 8 more names so"]
    assert load({"outer": checkpoint}) == [
        f"took its entry outer.{name}, read module.0.weight as 0.weight, and 8 more names so"
    ]


def test_of_several_entries_that_fit_none_is_picked():
    assert load({"model": STATE, "ema": {name: value.clone() for name, value in STATE.items()}}) == ["took its entry model"]
    for other in (OTHER, prefixed(OTHER, "module.")):
        torch.save({"model": STATE, "ema": other, "epoch": 3}, "w.pt")
        fails(
            network(), message="must hold one state_dict that fits model nets:network, got several that differ: model, ema;"
        )


def test_an_entry_that_does_not_fit_changes_nothing_of_one_that_does():
    larger = {name: torch.zeros([*value.shape, 2]) for name, value in STATE.items()}
    assert load({"a": larger, "model": STATE, "teacher": OTHER | {"more": torch.zeros(1)}}) == ["took its entry model"]


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"epoch": 1}, "9 missing, such as 0.weight, epoch is unexpected; the file holds epoch"),
        ({}, "9 missing, such as 0.weight; the file holds nothing"),
        (
            {"state_dict": {}, "epoch": 1},
            "of its entry state_dict, 9 missing, such as 0.weight; the file holds state_dict, epoch",
        ),
        (
            {"net": {name: value for name, value in STATE.items() if name != "2.bias"}, "epoch": 1},
            "of its entry net, 2.bias is missing; the file holds net, epoch",
        ),
        (
            prefixed(STATE, "module.") | {"module.fc.bias": torch.zeros(1)},
            "module.fc.bias is unexpected; the file holds module.0.weight, ",
        ),
        (
            STATE | {"2.weight": torch.zeros(10, 4), "2.bias": torch.zeros(10)},
            "2 of another shape, such as 2.weight ([10, 4], where the model has [3, 4]); the file holds",
        ),
        (STATE | {"2.bias": 3}, "2.bias"),
        ([torch.zeros(1)], "it holds a list, not tensors by name"),
        (torch.zeros(1), "it holds a Tensor, not tensors by name"),
        ({1: torch.zeros(1)}, "it holds a dict, not tensors by name; the file holds 1"),
        (3, "it holds a int, not tensors by name"),
    ],
)
def test_what_does_not_fit_is_shown(checkpoint, message):
    torch.save(checkpoint, "w.pt")
    assert "does not fit model nets:network: " in fails(network(), message=message)


@pytest.mark.parametrize(
    "more",
    [{"loss.weight": torch.zeros(2)}, prefixed(OTHER, "ema."), prefixed(OTHER, "a.module.") | {"mean": torch.zeros(1)}],
)
@pytest.mark.parametrize("prefix", ["model.", "1.module.", "module.model."])
def test_names_of_which_some_would_fit_are_shown(more, prefix):
    state = prefixed(STATE, prefix) | more
    for checkpoint, entry in (
        (state, ""),
        ({"best": torch.tensor(1.0), "state": state, "epoch": 3}, "of its entry state, "),
    ):
        torch.save(checkpoint, "w.pt")
        said = fails(
            network(0, nn.DataParallel),
            message=f"{entry}9 missing, such as module.0.weight, {len(state)} unexpected, such as ",
        )
        chosen = re.search(r"save these by themselves, (\{.*\}); the file holds", said)[1]
        torch.save(eval(chosen, {"STATE": state}), "part.pt")
        module = network()
        load_weights(module, "nets:network", "part.pt")
        assert state_dict_sha256(module) == state_dict_sha256(network(1))


def test_no_names_to_choose_are_shown_where_that_would_not_help():
    larger = prefixed(STATE | {"2.bias": torch.zeros(10)}, "module.")
    for checkpoint in (larger, prefixed(STATE, "model.") | {"model.more": torch.zeros(1)}, {"epoch": 1}):
        torch.save(checkpoint, "w.pt")
        assert "save these" not in fails(network())


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea\n", "version https://git-lfs.github.com/spec/"),
        ("\n<!doctype html>\n<title>404</title>", "<!doctype html> <title>404</title>"),
        ('{"error": "no access"}', '{"error": "no access"}'),
    ],
)
def test_text_is_shown(tmp_path, text, start):
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_text(text)
        fails(network(), name, f"; it begins with {start!r}, so it is text, such as a web page or a Git LFS pointer")
    torch.save(STATE, "w.pt")
    with open("w.pt", "r+b") as file:
        file.truncate(900)
    assert "text" not in fails(network())


def test_a_checkpoint_within_itself():
    checkpoint = {"epoch": 1}
    checkpoint["self"] = checkpoint
    torch.save(checkpoint, "w.pt")
    fails(network(), message="9 missing")


def test_batch_norm_without_its_count():
    """Of before PyTorch 0.4.1: PyTorch itself fills it in, and in eval mode nothing reads it."""
    state = OrderedDict((name, value) for name, value in STATE.items() if "tracked" not in name)
    torch.save(state, "w.pt")
    module = network()
    load_weights(module, "nets:network", "w.pt")
    assert torch.equal(module[1].running_mean, STATE["1.running_mean"])


def test_foreign_objects_are_named():
    for foreign, name in (
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (network(), "torch.nn.modules.container.Sequential"),
        (np.float64(3), "scalar"),
    ):
        for zipped in (True, False):
            torch.save({"state_dict": STATE, "args": foreign}, "w.pt", _use_new_zipfile_serialization=zipped)
            said = fails(network(), message="weights_only=False), and save its state_dict by itself")
            assert re.search(rf"holds a \S*{name}, and nothing but tensors is unpickled", said)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_is_unpickled(tmp_path):
    for protocol in (2, 4):
        (tmp_path / "w.pt").write_bytes(pickle.dumps({"state_dict": Bomb()}, protocol))
        fails(network())
    torch.save({"state_dict": STATE, "bomb": Bomb()}, "w.pt")
    fails(network(), message="holds a ")
    assert not (tmp_path / "exploded").exists()


def safetensors_file(header, data=b"abcd"):
    packed = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data


def entry(shape=(1,), dtype="F32", offsets=(0, 4)):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "data",
    [
        b"text",
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 1 << 30) + b"{}",
        safetensors_file(b"null"),
        safetensors_file(b'{"w":3}'),
        safetensors_file(b'{"\xff":3}'),
        safetensors_file(b'{"w":' + b"[" * 90_000 + b"]" * 90_000 + b"}"),
        safetensors_file(entry(dtype="F33")),
        safetensors_file(entry(shape=(-1,))),
        safetensors_file(entry(shape=(1 << 40, 1 << 40))),
        safetensors_file(entry(shape=(10**15,), offsets=(0, 4 * 10**15))),
        safetensors_file(entry(offsets=(0, 1 << 63))),
        safetensors_file(entry(offsets=(4, 0))),
        safetensors_file(entry(), b"abc"),
    ],
)
def test_damaged_safetensors(tmp_path, data):
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).write_bytes(data)
        fails(network(), name, "is damaged or holds more than tensors")


def test_whole_models_are_for_the_factory(tmp_path):
    module = nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(module), "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fails(module, message="is a TorchScript archive, a whole model; name it as the model: jit:FILE")
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3),)), "w.pt2")
    fails(module, "w.pt2", "is an archive of torch.export, a whole model")


def test_what_is_no_file_of_weights(tmp_path):
    os.mkfifo("fifo")
    os.mkdir("folder")
    (tmp_path / "empty.pt").touch()
    np.savez("arrays.npz", a=np.zeros(3))
    for name, message in (
        ("fifo", "must be a regular file, got a FIFO"),
        ("folder", "Is a directory: 'folder'"),
        ("missing.pt", "No such file or directory: 'missing.pt'"),
        ("empty.pt", "must hold a state_dict, got an empty file"),
        ("arrays.npz", "is damaged or holds more than tensors"),
    ):
        fails(network(), name, message)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_any_bytes_may_change(tmp_path, kind):
    """The weights, or one error."""
    file = "w.safetensors" if kind == "safetensors" else "w.pt"
    if kind == "safetensors":
        safetensors.torch.save_file(STATE, file)
    else:
        torch.save({"state_dict": STATE}, file, _use_new_zipfile_serialization=kind == "zip")
    whole, rng, fitted = (tmp_path / file).read_bytes(), random.Random(kind), 0
    module = network()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        (tmp_path / file).write_bytes(data)
        with warnings.catch_warnings(), suppress(ValueError):
            warnings.simplefilter("ignore")
            load_weights(module, "nets:network", file)
            fitted += 1
    assert fitted < 200
