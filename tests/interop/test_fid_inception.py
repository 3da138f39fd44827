"""The Inception network of FID: names, shapes and sizes of the released file, and the three places it is special."""

import pytest
import torch
from torch.nn import functional as F

from diptych.interop.fid_inception import FILE_NAMES, graph_names, load_fid_inception
from diptych.models.encoders.fid_inception import FidInception

# Of each convolution: name, weight shape. The layout of the file that pytorch-fid downloads, block by block.
A = {
    "branch1x1": (64, None, 1, 1),
    "branch5x5_1": (48, None, 1, 1),
    "branch5x5_2": (64, 48, 5, 5),
    "branch3x3dbl_1": (64, None, 1, 1),
    "branch3x3dbl_2": (96, 64, 3, 3),
    "branch3x3dbl_3": (96, 96, 3, 3),
}
B = {
    "branch3x3": (384, None, 3, 3),
    "branch3x3dbl_1": (64, None, 1, 1),
    "branch3x3dbl_2": (96, 64, 3, 3),
    "branch3x3dbl_3": (96, 96, 3, 3),
}
D = {
    "branch3x3_1": (192, None, 1, 1),
    "branch3x3_2": (320, 192, 3, 3),
    "branch7x7x3_1": (192, None, 1, 1),
    "branch7x7x3_2": (192, 192, 1, 7),
    "branch7x7x3_3": (192, 192, 7, 1),
    "branch7x7x3_4": (192, 192, 3, 3),
}
E = {
    "branch1x1": (320, None, 1, 1),
    "branch3x3_1": (384, None, 1, 1),
    "branch3x3_2a": (384, 384, 1, 3),
    "branch3x3_2b": (384, 384, 3, 1),
    "branch3x3dbl_1": (448, None, 1, 1),
    "branch3x3dbl_2": (384, 448, 3, 3),
    "branch3x3dbl_3a": (384, 384, 1, 3),
    "branch3x3dbl_3b": (384, 384, 3, 1),
    "branch_pool": (192, None, 1, 1),
}


def c(width):
    return {
        "branch1x1": (192, None, 1, 1),
        "branch7x7_1": (width, None, 1, 1),
        "branch7x7_2": (width, width, 1, 7),
        "branch7x7_3": (192, width, 7, 1),
        "branch7x7dbl_1": (width, None, 1, 1),
        "branch7x7dbl_2": (width, width, 7, 1),
        "branch7x7dbl_3": (width, width, 1, 7),
        "branch7x7dbl_4": (width, width, 7, 1),
        "branch7x7dbl_5": (192, width, 1, 7),
        "branch_pool": (192, None, 1, 1),
    }


BLOCKS = {
    "Mixed_5b": (192, A | {"branch_pool": (32, None, 1, 1)}),
    "Mixed_5c": (256, A | {"branch_pool": (64, None, 1, 1)}),
    "Mixed_5d": (288, A | {"branch_pool": (64, None, 1, 1)}),
    "Mixed_6a": (288, B),
    "Mixed_6b": (768, c(128)),
    "Mixed_6c": (768, c(160)),
    "Mixed_6d": (768, c(160)),
    "Mixed_6e": (768, c(192)),
    "Mixed_7a": (768, D),
    "Mixed_7b": (1280, E),
    "Mixed_7c": (2048, E),
}
STEM = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
}


def released_shapes():
    convs = dict(STEM)
    for block, (channels, branches) in BLOCKS.items():
        for name, (out, into, *kernel) in branches.items():
            convs[f"{block}.{name}"] = (out, into or channels, *kernel)
    shapes = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in convs.items():
        shapes[f"{name}.conv.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (shape[0],)
    return shapes


@pytest.fixture(scope="module")
def released():
    """Random weights in the layout of the released file, without the counters of batch norm, as that has none."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in released_shapes().items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("conv.weight"):
            value *= (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        if name.endswith(("running_var", "bn.weight")):
            value = value.abs() * 0.2 + 0.9
        tensors[name] = value
    return tensors


@pytest.fixture(scope="module")
def file(released, tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "checkpoints" / FILE_NAMES[0]
    path.parent.mkdir()
    torch.save(released, path)
    return path


def test_names_shapes_and_count_are_those_of_the_released_file():
    network = FidInception()
    own = {name: tuple(value.shape) for name, value in network.state_dict().items() if "num_batches" not in name}
    assert own == released_shapes()
    assert len(own) == 94 * 5 + 2
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_850_960


def test_the_file_loads_and_gives_2048_features(file, released, monkeypatch):
    network = load_fid_inception(file)
    assert torch.equal(network.Mixed_7c.branch_pool.conv.weight, released["Mixed_7c.branch_pool.conv.weight"])
    with torch.no_grad():
        images = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(1))
        features = network(images)
    assert features.shape == (1, 2048) and features.isfinite().all() and features.std() > 0
    assert network.logits(features).shape == (1, 1008)
    difference = network.logits(features) - network.logits(features, use_bias=False)
    torch.testing.assert_close(difference[0], released["fc.bias"], rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(file.parents[1]))
    assert torch.equal(load_fid_inception().fc.bias, network.fc.bias)


def plain(tensors, name, x, stride=1, padding=0):
    """A convolution, its batch norm and ReLU, from the tensors alone."""
    x = F.conv2d(x, tensors[f"{name}.conv.weight"], None, stride, padding)
    stats = (tensors[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, *stats, eps=0.001))


def test_pools_leave_the_padding_out_and_the_last_one_is_a_maximum(file, released):
    network, generator = load_fid_inception(file), torch.Generator().manual_seed(2)
    x = torch.rand(1, 288, 5, 5, generator=generator)
    ones = F.conv2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3), padding=1)
    summed = F.conv2d(x, torch.ones(288, 1, 3, 3), padding=1, groups=288)
    pooled = plain(released, "Mixed_5d.branch_pool", summed / ones)
    torch.testing.assert_close(network.Mixed_5d(x)[:, -64:], pooled, rtol=1e-4, atol=1e-5)
    x = torch.rand(1, 2048, 4, 4, generator=generator)
    largest = F.unfold(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3).reshape(1, 2048, 9, 4, 4).amax(2)
    pooled = plain(released, "Mixed_7c.branch_pool", largest)
    torch.testing.assert_close(network.Mixed_7c(x)[:, -192:], pooled, rtol=1e-4, atol=1e-4)


def test_forks_and_halving_convolutions_stand_where_they_should(file, released):
    network, generator = load_fid_inception(file), torch.Generator().manual_seed(3)
    x = torch.rand(1, 1280, 4, 4, generator=generator)
    y = plain(released, "Mixed_7b.branch3x3_1", x)
    fork = [
        plain(released, "Mixed_7b.branch3x3_2a", y, padding=(0, 1)),
        plain(released, "Mixed_7b.branch3x3_2b", y, padding=(1, 0)),
    ]
    torch.testing.assert_close(network.Mixed_7b(x)[:, 320 : 320 + 768], torch.cat(fork, 1), rtol=1e-4, atol=1e-4)
    x = torch.rand(1, 288, 7, 7, generator=generator)
    out = network.Mixed_6a(x)
    assert out.shape == (1, 768, 3, 3)
    torch.testing.assert_close(out[:, :384], plain(released, "Mixed_6a.branch3x3", x, stride=2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out[:, -288:], F.max_pool2d(x, 3, 2))


def test_wrong_files_are_refused(file, released, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        load_fid_inception(tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is no file of tensors, or a damaged one"):
        load_fid_inception(tmp_path / "cut.pth")
    torch.save({name: value for name, value in released.items() if name != "fc.bias"}, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"Inception network of FID: 1 tensors are missing \(first fc.bias\)"):
        load_fid_inception(tmp_path / "short.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold tensors by name"):
        load_fid_inception(tmp_path / "list.pth")


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def constant(name, array):
    """A ``Const`` node as TensorFlow writes it."""
    shape = b"".join(field(2, field(1, size)) for size in array.shape)
    tensor = field(1, 1) + field(2, shape) + field(4, array.astype("<f4").tobytes())
    dtype = field(5, field(1, b"dtype") + field(2, field(6, 1)))
    value = field(5, field(1, b"value") + field(2, field(8, tensor)))
    return field(1, field(1, name.encode()) + field(2, b"Const") + dtype + value)


def test_the_original_graph_has_the_same_weights(released, tmp_path):
    names = graph_names(FidInception())
    assert len(names) == 94
    known = {
        "conv_4": "Conv2d_4a_3x3",
        "mixed/conv": "Mixed_5b.branch1x1",
        "mixed/tower_1/conv": "Mixed_5b.branch3x3dbl_1",
        "mixed_10/tower/mixed/conv": "Mixed_7c.branch3x3_2a",
        "mixed_10/tower_1/conv_1": "Mixed_7c.branch3x3dbl_2",
        "mixed_10/tower_1/mixed/conv_1": "Mixed_7c.branch3x3dbl_3b",
        "mixed_10/tower_2/conv": "Mixed_7c.branch_pool",
    }
    assert known.items() <= names.items()
    nodes = [field(1, field(1, b"input") + field(2, b"Placeholder"))]
    nodes += [constant("softmax/weights", released["fc.weight"].numpy().T)]
    nodes += [constant("softmax/biases", released["fc.bias"].numpy())]
    for theirs, ours in names.items():
        kernel = released[f"{ours}.conv.weight"].permute(2, 3, 1, 0).contiguous().numpy()
        nodes.append(constant(f"{theirs}/conv2d_params", kernel))
        for name, part in (("gamma", "weight"), ("beta", "bias"), ("moving_mean", "running_mean")):
            nodes.append(constant(f"{theirs}/batchnorm/{name}", released[f"{ours}.bn.{part}"].numpy()))
        nodes.append(constant(f"{theirs}/batchnorm/moving_variance", released[f"{ours}.bn.running_var"].numpy()))
    path = tmp_path / "classify_image_graph_def.pb"
    path.write_bytes(b"".join(nodes))
    loaded = load_fid_inception(path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in released.items())
    path.write_bytes(b"".join(nodes)[:1_000_000])
    with pytest.raises(ValueError, match="is no frozen TensorFlow graph, or a damaged one"):
        load_fid_inception(path)


def test_a_missing_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"looked for {FILE_NAMES[0]}"):
        load_fid_inception()
