import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from diptych.interop.plain_graph import PlainGraph, load_plain_graph, load_plain_graph_encoder
from diptych.models.part import build_part
from diptych.models.preprocess import to_float


def conv(name, source, **changes):
    node = {"op": "conv2d", "in": [source], "out": name, "weight": f"{name}.weight", "bias": f"{name}.bias"}
    return node | {"stride": [1, 1], "pad": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1, "act": "none"} | changes


def graph_of(nodes, outputs, size=16):
    settings = {"shape": [3, size, size], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    return {"format": "plain-graph/1", "name": "toy", "input": settings, "nodes": nodes, "outputs": outputs}


CLASSIFIER = graph_of(
    [
        conv("a.b", "x", stride=[2, 2], pad=[0, 1, 0, 1], act="relu6"),
        conv("c", "a.b", groups=2, pad=[1, 1, 1, 1], act="silu"),
        {"op": "add", "in": ["a.b", "c"], "out": "d", "act": "none"},
        {"op": "maxpool", "in": ["d"], "out": "e", "kernel": 2, "stride": 2, "pad": 0, "ceil": False},
        {"op": "global_avgpool", "in": ["e"], "out": "g"},
        {"op": "flatten", "in": ["g"], "out": "features", "start": 1},
    ],
    {"features": "features"},
)
WEIGHTS = {"a.b.weight": (4, 3, 3, 3), "a.b.bias": (4,), "c.weight": (4, 2, 3, 3), "c.bias": (4,)}


def write_classifier(folder):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in WEIGHTS.items()}
    save_file({name: value.half() for name, value in tensors.items()}, folder / "toy.safetensors")
    (folder / "toy.graph.json").write_text(json.dumps(CLASSIFIER))
    return {name: value.half().float() for name, value in tensors.items()}


def images(size=16, batch=2):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_small_classifier_equals_the_same_written_out(tmp_path):
    weights = write_classifier(tmp_path)
    encoder = load_plain_graph_encoder(tmp_path / "toy.graph.json")
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.3, 0.4]]).reshape(2, 1, 3, 1, 1)
    x = ((images() + 1) / 2 - mean) / std
    first = F.relu6(F.conv2d(F.pad(x, (0, 1, 0, 1)), weights["a.b.weight"], weights["a.b.bias"], stride=2))
    second = F.silu(F.conv2d(first, weights["c.weight"], weights["c.bias"], padding=1, groups=2))
    feature_map = F.max_pool2d(first + second, 2)
    with torch.no_grad():
        output = encoder(images(), (0, 1, 2))
    assert (encoder.dim, encoder.num_layers, encoder.patch_size, output.grid) == (4, 2, 4, (4, 4))
    torch.testing.assert_close(output.tokens, feature_map.flatten(2).transpose(1, 2))
    torch.testing.assert_close(output.pooled, feature_map.mean((2, 3)))
    torch.testing.assert_close(output.layer_tokens[1], (first + second).flatten(2).transpose(1, 2))
    torch.testing.assert_close(output.layer_tokens[0], x.flatten(2).transpose(1, 2))
    again = build_part(json.loads(json.dumps(encoder.config_dict())))
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(images()).pooled, output.pooled)
    assert encoder(images(20)).grid == (5, 5)


def test_the_operations_without_weights():
    nodes = [
        {"op": "focus", "in": ["x"], "out": "focus", "act": "sigmoid"},
        {"op": "upsample_nearest", "in": ["focus"], "out": "up", "scale": 2},
        {"op": "concat", "in": ["x", "up"], "out": "cat", "axis": 1},
        {"op": "maxpool", "in": ["cat"], "out": "pool", "kernel": 3, "stride": 2, "pad": 1, "ceil": True},
        {"op": "flatten", "in": ["pool"], "out": "flat", "start": 2},
        {"op": "transpose", "in": ["flat"], "out": "rows", "dims": [1, 2]},
    ]
    network = PlainGraph(graph=graph_of(nodes, {"rows": "rows"}), weight_shapes={})
    x = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    values = network.run(x, ["focus", "pool", "rows"])
    assert values["focus"].shape == (1, 12, 2, 3)
    # the second group of channels holds odd rows and even columns
    torch.testing.assert_close(values["focus"][0, 3:6, 1, 2], torch.sigmoid(x[0, :, 3, 4]))
    up = values["focus"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    pool = F.max_pool2d(torch.cat([x, up], 1), 3, 2, 1, ceil_mode=True)
    torch.testing.assert_close(values["pool"], pool)
    torch.testing.assert_close(values["rows"], pool.flatten(2).transpose(1, 2))


def test_nodes_that_are_not_needed_do_not_run():
    bad = conv("bad", "x")
    nodes = [{"op": "flatten", "in": ["x"], "out": "flat", "start": 1}, bad]
    shapes = {"bad.weight": (1, 99, 1, 1), "bad.bias": (1,)}  # cannot be applied to three channels
    network = PlainGraph(graph=graph_of(nodes, {"flat": "flat"}), weight_shapes=shapes)
    assert network(images())["flat"].shape == (2, 3 * 256)
    with pytest.raises(RuntimeError):
        network.run(images(), ["bad"])
    with pytest.raises(KeyError, match=r"has no tensors .'nothing'"):
        network.run(images(), ["nothing"])


def test_preprocessing_follows_the_graph(tmp_path):
    write_classifier(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    encoder = load_plain_graph_encoder(tmp_path / "toy.graph.json")
    assert encoder.preprocess(pixels).shape == (3, 16, 16)
    whole = load_plain_graph_encoder(tmp_path / "toy.graph.json", resize="fixed").preprocess(pixels)
    assert whole.shape == (3, 16, 16) and not torch.equal(whole, encoder.preprocess(pixels))


def test_messages(tmp_path):
    write_classifier(tmp_path)
    encoder = load_plain_graph_encoder(tmp_path / "toy.graph.json")
    with pytest.raises(ValueError, match=r"the network 'toy' takes .* multiples of 4, got 18x18. Resize them to 16x16"):
        encoder(images(18))
    with pytest.raises(ValueError, match=r"format 'plain-graph/1' is expected, got 'onnx'"):
        PlainGraph(graph=CLASSIFIER | {"format": "onnx"}, weight_shapes={})
    with pytest.raises(ValueError, match=r"node 'y': operation 'softmax' is not known; known are conv2d, add"):
        PlainGraph(graph=graph_of([{"op": "softmax", "in": ["x"], "out": "y"}], {}), weight_shapes={})
    with pytest.raises(ValueError, match=r"node 'y': its input 'z' is written by no earlier node"):
        PlainGraph(graph=graph_of([{"op": "add", "in": ["x", "z"], "out": "y"}], {}), weight_shapes={})
    with pytest.raises(ValueError, match=r"node 'a.b': the weight file has no 'a.b.weight'"):
        PlainGraph(graph=CLASSIFIER, weight_shapes={})
    (tmp_path / "toy.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"toy.safetensors is no safetensors file, or a damaged one"):
        load_plain_graph(tmp_path / "toy.graph.json")
    (tmp_path / "toy.safetensors").unlink()
    (tmp_path / "torn.safetensors").write_bytes(b"")
    (tmp_path / "torn.graph.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"torn.graph.json is no JSON file, or a damaged one"):
        load_plain_graph(tmp_path / "torn.graph.json")
    with pytest.raises(FileNotFoundError, match=r"toy.safetensors is missing: a plain graph is a NAME.graph.json with"):
        load_plain_graph(tmp_path / "toy.graph.json")


def relative_error(ours, expected):
    expected = torch.from_numpy(expected)
    return ((ours - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["mobilenet_v2_100", "mobilenet_v1_075_192", "squeezenet_v1_1"])
def test_real_classifiers_equal_the_stored_outputs(test_data, name):
    expected = np.load(test_data / "models" / "expected.npz")
    encoder = load_plain_graph_encoder(test_data / "models" / "imagenet" / f"{name}.graph.json")
    pixels = torch.stack([to_float(image) for image in expected[f"{name}/input_u8"]])
    with torch.no_grad():
        output = encoder(pixels)
        logits = encoder.network(pixels)["logits"]
    assert relative_error(output.pooled, expected[f"{name}/features"]) < 1e-5
    assert relative_error(logits, expected[f"{name}/logits"]) < 1e-5
    torch.testing.assert_close(output.tokens.mean(1), output.pooled)


def test_the_real_detector_equals_the_stored_output(test_data):
    expected = np.load(test_data / "models" / "expected.npz")
    network = load_plain_graph(test_data / "models" / "detector" / "yolox_nano.graph.json")
    with torch.no_grad():
        raw = network(to_float(expected["yolox_nano/input_u8"])[None])["raw"]
    assert raw.shape == (1, 3549, 85)
    assert relative_error(raw[0, ::50], expected["yolox_nano/raw_every_50th"]) < 1e-4
    with pytest.raises(ValueError, match="graph 'yolox_nano' is no feature extractor: it has the outputs raw"):
        load_plain_graph_encoder(test_data / "models" / "detector" / "yolox_nano.graph.json")
