"""Feature networks by name, and distances of real pictures that were measured elsewhere by other code."""

import json

import numpy as np
import pytest
import torch

from diptych.data.pictures import EncodedPictures
from diptych.data.sources.blob_npz import BlobNpz
from diptych.data.sources.scenes import ScenesSource
from diptych.frechet.distance import frechet_distance
from diptych.frechet.extraction import PixelRule, extract, extraction_folder, missing_chunks, read_extracted
from diptych.frechet.features import Features, module_features
from diptych.frechet.ratio import PAPER_NORMALISERS
from diptych.interop.feature_networks import NAMES, TOWERS, FeatureNetwork, load_features
from diptych.recipes import clip
from diptych.scenes.draw import draw
from diptych.scenes.labels import LABELS, cell_labels
from diptych.scenes.scene import SHAPES
from tests.interop.test_plain_graph import write_classifier


def own_network():
    return module_features(torch.nn.Flatten(), name="own", dim=48, size=(4, 4))


def not_a_network():
    return torch.nn.Flatten()


def test_the_six_of_the_paper_have_names_and_normalisers():
    assert set(PAPER_NORMALISERS) <= set(NAMES)
    assert len(PAPER_NORMALISERS) == 6 and len(TOWERS) == 8


def test_the_encoder_of_the_bundled_model():
    features = load_features("scenes")
    assert (features.dim, features.preprocessing.pooling, features.preprocessing.size) == (96, "mean", (64, 64))
    images = torch.rand(2, 3, 80, 64, requires_grad=True)
    out = features(images, (0, 1))
    out.sum().backward()
    assert out.shape == (2, 96) and images.grad.abs().sum() > 0
    assert load_features("scenes@32", "bfloat16").preprocessing.size == (32, 32)
    assert load_features("scenes", "bfloat16").fingerprint != features.fingerprint
    assert load_features("scenes").network_id == features.network_id


def test_the_encoder_of_a_contrastive_model(tmp_path):
    torch.manual_seed(0)
    model = clip.tiny().model.build()
    model.save(tmp_path / "clip")
    features = FeatureNetwork(f"scenes={tmp_path / 'clip'}").build()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = model.eval().encoder(images).tokens.mean(1)
    torch.testing.assert_close(features(images, (-1, 1)), expected, rtol=1e-4, atol=1e-5)


def test_pixels_are_the_image_itself():
    features = load_features("pixels@4")
    images = torch.rand(2, 3, 4, 4)
    assert features.dim == 48 and load_features("pixels").dim == 192
    torch.testing.assert_close(features(images, (0, 1)), images.flatten(1))


def test_the_networks_in_the_box_were_trained_for_different_tasks():
    """Each explains best what it was trained for (by least squares on its features), on pictures it has not seen."""
    source = ScenesSource(num_scenes=1200, split="test", image_size=64, seed=5).build()
    scenes = [source.scene(index) for index in range(1200)]
    pictures = torch.stack([torch.from_numpy(draw(scene, 64)).permute(2, 0, 1) for scene in scenes])
    grids = torch.stack([torch.from_numpy(cell_labels(scene, 8)) for scene in scenes])
    targets = {
        "objects": grids.amax((2, 3))[:, [LABELS.index(name) for name in SHAPES]],
        "layout": grids[:, 0].flatten(1),
        "autoencoder": torch.nn.functional.avg_pool2d(pictures.float(), 8).flatten(1),
    }
    explained = {}
    for name in targets:
        features = load_features(f"scenes-{name}")
        assert features.dim == 64 and features.preprocessing.size == (64, 64)
        rows = torch.cat([features(pictures).double(), torch.ones(1200, 1, dtype=torch.float64)], dim=1)
        for task, target in targets.items():
            target = target.double()
            weights = torch.linalg.lstsq(rows[:900], target[:900]).solution
            error = (rows[900:] @ weights - target[900:]).square().mean()
            explained[name, task] = 1 - (error / target[900:].sub(target[:900].mean(0)).square().mean()).item()
    for task in targets:
        own = explained[task, task]
        others = [value for (name, of), value in explained.items() if of == task and name != task]
        assert own > 0.1 and own > max(others) + 0.05, explained


def test_a_function_of_the_users():
    features = load_features(f"mine={__name__}:own_network")
    assert isinstance(features, Features) and features.name == "own"
    with pytest.raises(ValueError, match=r"must return diptych\.frechet\.features\.Features, got Flatten"):
        load_features(f"mine={__name__}:not_a_network")
    with pytest.raises(ValueError, match="cannot be imported"):
        load_features("mine=no_such_module:make")


def test_a_tower_in_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**sizes, image_size=28, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    features = load_features(f"dinov2={tmp_path}")
    assert (features.dim, features.preprocessing.size, features.preprocessing.pad_multiple) == (16, (256, 256), 14)
    assert features.preprocessing.pooling == "class-token"
    assert load_features(f"dinov2@28={tmp_path}").preprocessing.pad_multiple == 1
    images = torch.rand(1, 3, 30, 30, requires_grad=True)
    load_features(f"dinov2@28={tmp_path}")(images, (0, 1))[:, 0].sum().backward()  # all of a norm sum up to nothing
    assert images.grad.abs().sum() > 0


def test_a_plain_graph_at_its_own_size_and_another(tmp_path):
    write_classifier(tmp_path)
    path = tmp_path / "toy.graph.json"
    features = load_features(f"toy={path}")
    assert (features.dim, features.preprocessing.size, features.preprocessing.resize) == (4, (16, 16), "bilinear")
    assert features.preprocessing.mean == (0.5, 0.4, 0.3)
    assert load_features(f"toy@32={path}").preprocessing.size == (32, 32)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dinov", "there is no 'dinov'. Did you mean dinov"),
        ("resnet=weights.bin", "give a .graph.json"),
        ("scenes@big", "the size after @ must be pixels"),
        ("inception@256", "its size is fixed"),
    ],
)
def test_unknown_networks_are_refused_with_a_way_out(spec, message):
    with pytest.raises(ValueError, match=message):
        load_features(spec)


def features_of(pictures, features, folder):
    place = extraction_folder(folder, pictures, features, PixelRule())
    extract(pictures, features, place, batch_size=16)
    assert missing_chunks(place, len(pictures)) == []
    moments = features.new_moments()
    moments.update(torch.from_numpy(read_extracted(place, len(pictures)).features))
    return moments


def rows_of(path, rows):
    blob = BlobNpz(path)
    return EncodedPictures(
        len(rows), lambda index: (str(rows[index]), blob.image(rows[index])), f"{path.name}{len(rows)}{rows[0]}"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("network", "expected"), [("squeezenet_v1_1", 5023.0), ("mobilenet_v1_075_192", 565.5)])
def test_the_distance_of_forest_and_industrial_satellite_pictures(test_data, tmp_path, network, expected):
    folder = test_data / "images" / "eurosat"
    labels = np.load(folder / "eurosat_rgb64.npz")["label"]
    classes = json.loads((folder / "classes.json").read_text())["classes"]
    features = load_features(f"net@{192 if '192' in network else 224}={test_data}/models/imagenet/{network}.graph.json")
    sides = []
    for name in ("Forest", "Industrial"):
        rows = np.flatnonzero(labels == classes.index(name)).tolist()
        assert len(rows) == 1000
        sides.append(features_of(rows_of(folder / "eurosat_rgb64.npz", rows), features, tmp_path))
    distance = frechet_distance(*sides)
    print(f"{network}: FD Forest/Industrial {distance:.1f}, published {expected}")
    assert distance == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_the_distance_of_two_styles_of_emoji(test_data, tmp_path):
    folder = test_data / "images" / "emoji"
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    paired = [row for row in rows if row["noto"] is not None and row["fluent3d"] is not None]
    assert len(paired) == 2980
    features = load_features(f"net@224={test_data}/models/imagenet/squeezenet_v1_1.graph.json")
    sides = [
        features_of(rows_of(folder / f"{style}_128.npz", [row[style] for row in paired]), features, tmp_path)
        for style in ("noto", "fluent3d")
    ]
    distance = frechet_distance(*sides)
    print(f"squeezenet_v1_1: FD noto/fluent3d {distance:.1f}, published 932.6")
    assert distance == pytest.approx(932.6, rel=0.01)
