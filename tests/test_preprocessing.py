"""Preprocessing: what the model's own library makes of a picture, to the bit where both use Pillow."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from rsfast._extras import import_extra, import_torchvision
from rsfast.loading.models import load_model
from rsfast.loading.preprocessing import Preprocessing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchvision = import_torchvision("tests")
timm = import_extra("timm", "vision", "tests")


def picture(height=150, width=211, mode="RGB"):
    """One with edges and slopes, wider than high."""
    pixels = np.random.default_rng(7).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def normalised(how, image):
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (how.mean, how.std))
    return (how.picture(image) / 255 - mean) / std


PICTURES = [picture(), picture(211, 150), picture(60, 40), picture(mode="L"), picture(mode="RGBA"), picture(mode="P")]


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vit_tiny_patch16_224", "test_byobnet", "test_vit", "resnet10t.c3_in1k", "mobilenetv4_conv_small_035"],
)
def test_timm(name):
    loaded = load_model(f"timm:{name}", weights="random")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded.model))
    for image in PICTURES:
        assert torch.allclose(normalised(loaded.preprocessing, image), transform(image.convert("RGB")), atol=1e-5)


def test_timm_squeezed():
    name = next(name for name in timm.list_models() if timm.get_pretrained_cfg(name).crop_mode == "squash")
    how = load_model(f"timm:{name}", weights="random").preprocessing
    config = timm.get_pretrained_cfg(name)
    transform = timm.data.create_transform(
        config.input_size, crop_pct=config.crop_pct, crop_mode="squash", interpolation=config.interpolation, mean=0, std=1
    )
    assert torch.allclose(how.picture(PICTURES[0]) / 255, transform(PICTURES[0]), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenet_v3_large.IMAGENET1K_V2"])
def test_torchvision(name):
    loaded = load_model(f"torchvision:{name}", weights="random")
    weights = torchvision.models.get_model_weights(name.partition(".")[0])
    transform = (weights[name.partition(".")[2]] if "." in name else weights.DEFAULT).transforms()
    for image in PICTURES:
        assert torch.allclose(normalised(loaded.preprocessing, image), transform(image.convert("RGB")), atol=1e-5)


PROCESSORS = {
    "ViT": ({"size": {"height": 40, "width": 48}}, "size 40 x 48 (bilinear), RGB, (pixel - 0.5) / 0.5"),
    "DeiT": (
        {"size": {"height": 60, "width": 60}, "crop_size": {"height": 48, "width": 48}},
        "size 60 x 60 (bicubic), crop 48 x 48, RGB, (pixel - 0.5) / 0.5",
    ),
    "CLIP": (
        {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}, "image_mean": [0.5] * 3},
        "shorter side 48 (bicubic), crop 40 x 40, RGB",
    ),
    "ConvNext": ({"size": {"shortest_edge": 56}, "crop_pct": 0.875}, "shorter side 64 (bicubic), crop 56 x 56"),
    "EfficientNet": (
        {"size": {"height": 48, "width": 48}, "rescale_offset": True, "rescale_factor": 1 / 127.5},
        "size 48 x 48 (bicubic), RGB, (pixel - 0.75) / 0.125",
    ),
}


def hf_folder(folder, kind, **config):
    """A ViT for pictures of 32 x 32, with the configuration of a processor."""
    transformers = import_extra("transformers", "hf", "tests")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32}
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, patch_size=16, num_labels=3))
    model.save_pretrained(folder)
    processor = getattr(transformers, f"{kind}ImageProcessor")(**config)
    processor.save_pretrained(folder)
    return model, processor


@pytest.mark.parametrize("kind", PROCESSORS)
def test_hugging_face(tmp_path, kind):
    config, shown = PROCESSORS[kind]
    _, processor = hf_folder(tmp_path, kind, **config)
    how = load_model(f"hf:{tmp_path}").preprocessing
    assert str(how).startswith(shown)
    for image in PICTURES[:3]:
        theirs = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"][0]))
        difference = (normalised(how, image) - theirs) * torch.tensor(how.std).reshape(-1, 1, 1)
        assert difference.abs().max() <= 2.01 / 255  # theirs resizes tensors, where antialiasing rounds otherwise


@pytest.mark.parametrize("kind", ["Levit", "MobileViT"])
def test_what_a_processor_does_besides_is_noticed(tmp_path, kind):
    """Levit enlarges the shorter side by 256 / 224; MobileViT swaps red and blue."""
    hf_folder(tmp_path, kind)
    with pytest.raises(ValueError, match=f"^model hf:{tmp_path}: {kind}ImageProcessor makes pictures in a way that rsfast"):
        load_model(f"hf:{tmp_path}")


def test_grey():
    how = Preprocessing((0.5,), (0.25,), (28, 28), 28, "bilinear", channels=1)
    found = how.picture(PICTURES[0])
    assert found.shape == (1, 28, 28)
    assert torch.equal(found[0], torch.from_numpy(np.array(PICTURES[0].convert("L").resize((39, 28), 2))[:, 6:34]))


def test_as_json():
    how = Preprocessing((0.5,) * 3, (0.25,) * 3, (224, 224), 256, source="a file")
    again = json.loads(json.dumps(how.to_dict()))
    assert again == how.to_dict()
    assert again == {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "size": [224, 224],
        "resize": 256,
        "interpolation": "bicubic",
        "channels": 3,
        "source": "a file",
        "half": "even",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interpolation": "cubic"}, "interpolation must be one of 'nearest', "),
        ({"channels": 4}, "channels must be one of 1, 3, got 4"),
        ({"mean": (0.5,)}, r"mean and std must be given together, got \(0.5,\) and None"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)


def test_deep_pictures_are_refused():
    deep = Image.fromarray(np.full((4, 4), 40000, np.uint16))
    with pytest.raises(ValueError, match="must have 8 bits a channel, got Pillow's mode I;16"):
        Preprocessing().picture(deep)
