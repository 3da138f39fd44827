"""Networks stored as ``plain-graph/1``: a JSON list of nodes beside a safetensors file of weights.

``PlainGraph`` runs any of them; ``PlainGraphEncoder`` makes a classifier with an output ``features`` (MobileNet,
SqueezeNet) a vision encoder. Batch norm is folded into the convolutions and padding is written out side by side, so
TensorFlow's asymmetric "SAME" needs no special case.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.interop.weight_files import load_exactly, read_weights
from diptych.models.encoders.processor_rule import ProcessorRule, normalize
from diptych.models.encoders.protocol import EncoderOutput, check_image_size, check_layers
from diptych.models.part import part_kind

FORMAT = "plain-graph/1"
Node: TypeAlias = Mapping[str, Any]
GraphResize: TypeAlias = Literal["shortest_edge", "fixed"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


def _focus(node: Node, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
    return torch.cat(corners, dim=1)


def _maxpool(node: Node, inputs: list[Tensor]) -> Tensor:
    return F.max_pool2d(inputs[0], node["kernel"], node["stride"], node["pad"], ceil_mode=node.get("ceil", False))


_OPERATIONS: dict[str, Callable[[Node, list[Tensor]], Tensor]] = {
    "add": lambda node, inputs: sum(inputs[1:], start=inputs[0]),
    "concat": lambda node, inputs: torch.cat(inputs, dim=node["axis"]),
    "maxpool": _maxpool,
    "global_avgpool": lambda node, inputs: inputs[0].mean((2, 3), keepdim=True),
    "flatten": lambda node, inputs: inputs[0].flatten(node["start"]),
    "upsample_nearest": lambda node, inputs: F.interpolate(inputs[0], scale_factor=node["scale"], mode="nearest"),
    "transpose": lambda node, inputs: inputs[0].transpose(*node["dims"]),
    "focus": _focus,
}
"""Every operation without weights; ``conv2d`` has its own method."""


class PlainGraph(nn.Module):
    """Interpreter of one graph.

    Args:
        graph: the content of a ``.graph.json``.
        weight_shapes: shape of every tensor of the weight file, so that the module can be built before it is read.

    Raises:
        ValueError: another format, an operation or activation that is not known, or a node that reads what no earlier
            node has written.
    """

    def __init__(self, *, graph: Mapping[str, Any], weight_shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        if graph.get("format") != FORMAT:
            raise ValueError(f"a graph of format {FORMAT!r} is expected, got {graph.get('format')!r}.")
        self.graph = dict(graph)
        self.nodes: list[Node] = list(graph["nodes"])
        known = {"x"}
        for node in self.nodes:
            self._check(node, known, weight_shapes)
            known.add(node["out"])
        self.outputs: dict[str, str] = dict(graph["outputs"])
        unwritten = [name for name in self.outputs.values() if name not in known]
        if unwritten:
            raise ValueError(f"graph {graph.get('name')!r} has the outputs {unwritten}, which no node writes.")
        self.weights = nn.ParameterDict(
            {_safe(name): nn.Parameter(torch.zeros(*shape)) for name, shape in weight_shapes.items()}
        )

    def run(self, x: Float[Tensor, "batch channels height width"], names: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of the given names; nodes that none of them needs are not run.

        Args:
            x: already normalised by the graph's mean and std.

        Raises:
            KeyError: the graph has no tensor of that name.
        """
        unknown = set(names) - {"x"} - {node["out"] for node in self.nodes}
        if unknown:
            raise KeyError(f"graph {self.graph.get('name')!r} has no tensors {sorted(unknown)}.")
        needed = set(names)
        steps = []
        for node in reversed(self.nodes):
            if node["out"] in needed:
                needed.update(node["in"])
                steps.append(node)
        values = {"x": x}
        for node in reversed(steps):
            inputs = [values[name] for name in node["in"]]
            result = self._conv2d(node, inputs[0]) if node["op"] == "conv2d" else _OPERATIONS[node["op"]](node, inputs)
            values[node["out"]] = _ACTIVATIONS[node.get("act", "none")](result)
        return {name: values[name] for name in names}

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """All outputs of the graph for images in [-1, 1]."""
        settings = self.graph["input"]
        values = self.run(normalize(images, settings["mean"], settings["std"]), list(self.outputs.values()))
        return {output: values[name] for output, name in self.outputs.items()}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the tensors of a weight file, by their names there."""
        own = {_safe(name): tensor for name, tensor in tensors.items()}
        load_exactly(self.weights, own, f"the weights of graph {self.graph.get('name')!r} do not fit")

    def _conv2d(self, node: Node, x: Tensor) -> Tensor:
        bias = self.weights[_safe(node["bias"])] if node.get("bias") else None
        return F.conv2d(
            F.pad(x, list(node["pad"])) if any(node["pad"]) else x,
            self.weights[_safe(node["weight"])],
            bias,
            stride=tuple(node["stride"]),
            dilation=tuple(node["dilation"]),
            groups=node["groups"],
        )

    def _check(self, node: Node, known: set[str], weight_shapes: Mapping[str, Sequence[int]]) -> None:
        where = f"graph {self.graph.get('name')!r}, node {node.get('out')!r}"
        if node["op"] != "conv2d" and node["op"] not in _OPERATIONS:
            names = ", ".join(("conv2d", *_OPERATIONS))
            raise ValueError(f"{where}: operation {node['op']!r} is not known; known are {names}.")
        if node.get("act", "none") not in _ACTIVATIONS:
            raise ValueError(f"{where}: activation {node['act']!r} is not known; known are {', '.join(_ACTIVATIONS)}.")
        for name in node["in"]:
            if name not in known:
                raise ValueError(f"{where}: its input {name!r} is written by no earlier node.")
        for kind in ("weight", "bias"):
            if node.get(kind) and node[kind] not in weight_shapes:
                raise ValueError(f"{where}: the weight file has no {node[kind]!r}.")


class PlainGraphEncoder(nn.Module):
    """A plain-graph classifier as a vision encoder.

    ``pooled`` is the graph's output ``features``, ``tokens`` the feature map that it is the mean of. Layer i is the
    last tensor with the i-th resolution on the way there (1 is the finest); 0 is the normalised image.

    Args:
        graph, weight_shapes: as for ``PlainGraph``.
        resize: ``shortest_edge``: as the classifier was tested, with its margin cut off; ``fixed``: the whole image.
    """

    def __init__(
        self,
        *,
        graph: Mapping[str, Any],
        weight_shapes: Mapping[str, Sequence[int]],
        resize: GraphResize = "shortest_edge",
    ) -> None:
        super().__init__()
        self.network = PlainGraph(graph=graph, weight_shapes=weight_shapes)
        if "features" not in self.network.outputs:
            raise ValueError(
                f"graph {graph.get('name')!r} is no feature extractor: it has the outputs "
                f"{', '.join(self.network.outputs)}, but not 'features'."
            )
        self._config: dict[str, Any] = {
            "graph": dict(graph),
            "weight_shapes": {name: list(shape) for name, shape in weight_shapes.items()},
            "resize": resize,
        }
        settings = graph["input"]
        height, width = settings["shape"][1:]
        self.trained_size = (int(height), int(width))
        self.rule = ProcessorRule(
            rule=resize,
            height=height,
            width=width,
            shortest_edge=settings.get("resize_short", height) if resize == "shortest_edge" else 0,
            filter="bilinear",
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
        )
        self.map_name = self._feature_map_name()
        self.layer_names, sizes, self.dim = self._resolutions(height, width)
        self.num_layers = len(self.layer_names) - 1
        self.patch_size = round(height / sizes[-1])

    def preprocess(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """The classifier's own resize rule (bilinear), in [-1, 1]."""
        return self.rule.apply(pixels, size)

    def forward(self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int] = ()) -> EncoderOutput:
        """Feature map as tokens, its mean as pooled output.

        Raises:
            ValueError: sides that are neither the trained size nor multiples of ``patch_size``, or no such layer.
        """
        if images.shape[-2:] != self.trained_size:
            check_image_size(images, self.patch_size, f"the network {self.network.graph.get('name')!r}")
        check_layers(layers, self.num_layers, f"the network {self.network.graph.get('name')!r}")
        feature_name = self.network.outputs["features"]
        names = [self.map_name, feature_name, *(self.layer_names[index] for index in layers)]
        values = self.network.run(normalize(images, self.rule.mean, self.rule.std), names)
        feature_map = values[self.map_name]
        return EncoderOutput(
            feature_map.flatten(2).transpose(1, 2),
            (feature_map.shape[2], feature_map.shape[3]),
            values[feature_name],
            {index: values[self.layer_names[index]].flatten(2).transpose(1, 2) for index in layers},
        )

    def config_dict(self) -> dict[str, Any]:
        return {"kind": part_kind(self), **self._config}

    def _feature_map_name(self) -> str:
        """What the global average pooling before ``features`` reads."""
        by_output = {node["out"]: node for node in self.network.nodes}
        name = self.network.outputs["features"]
        while name != "x":
            node = by_output[name]
            if node["op"] == "global_avgpool":
                return str(node["in"][0])
            name = node["in"][0]
        raise ValueError(f"graph {self.network.graph.get('name')!r}: 'features' is no mean of a feature map.")

    def _resolutions(self, height: int, width: int) -> tuple[list[str], list[int], int]:
        """Names and heights of the last tensors of each resolution up to the feature map, and the width of that."""
        order = [node["out"] for node in self.network.nodes]
        names = order[: order.index(self.map_name) + 1]
        with torch.no_grad():  # one pass with the empty weights: the shapes are all that is looked at
            values = self.network.run(torch.zeros(1, 3, height, width), names)
        last = {values[name].shape[2]: name for name in names}
        heights = sorted((size for size in last if size != height), reverse=True)
        return ["x", *(last[size] for size in heights)], heights, int(values[self.map_name].shape[1])


def load_plain_graph(path: str | Path) -> PlainGraph:
    """Reads ``NAME.graph.json`` and the ``NAME.safetensors`` beside it, as float32, in evaluation mode.

    Raises:
        FileNotFoundError: one of the two is not there.
        ValueError: one of them is damaged, or they do not belong together.
    """
    graph, tensors = _read(Path(path))
    network = PlainGraph(graph=graph, weight_shapes={name: list(value.shape) for name, value in tensors.items()})
    network.load_weights(tensors)
    return network.eval()


def load_plain_graph_encoder(path: str | Path, resize: GraphResize = "shortest_edge") -> PlainGraphEncoder:
    """The same network as a vision encoder; raises as ``load_plain_graph``, and if it has no output ``features``."""
    graph, tensors = _read(Path(path))
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    encoder = PlainGraphEncoder(graph=graph, weight_shapes=shapes, resize=resize)
    encoder.network.load_weights(tensors)
    return encoder.eval()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.name.endswith(".graph.json"):
        raise ValueError(f"a plain graph is named by its NAME.graph.json, got {path}.")
    weights = path.with_name(path.name.removesuffix(".graph.json") + ".safetensors")
    for file in (path, weights):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: a plain graph is a NAME.graph.json with a NAME.safetensors.")
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON file, or a damaged one: {error}.") from error
    return graph, read_weights(weights)


def _safe(name: str) -> str:
    """Parameter names must not hold dots."""
    return name.replace(".", "/")
