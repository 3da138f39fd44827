"""Feature networks by name, for the command line: ``NAME[@SIDE][=WHERE]``.

The six of arXiv 2604.28190 with its sizes and pooling (section 3 of its supplement), more towers of ``transformers``,
the encoder of a model of ours, networks in files, and whatever a function of the user's returns. Sizes that are no
whole number of patches are padded as timm's ``dynamic_img_pad`` does. Differs from the paper in the loader:
``transformers`` instead of timm, whose resampled position tables are not bit-equal.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from torch import nn

from diptych.frechet.features import Features, encoder_features, module_features
from diptych.frechet.preprocessing import FeatureDtype, Pooling
from diptych.interop.cifar_resnet import load_cifar_resnet
from diptych.interop.fid_inception import load_fid_inception
from diptych.interop.plain_graph import load_plain_graph_encoder
from diptych.models.encoders.fid_inception import IMAGE_SIZE, ORIGINAL_MEAN
from diptych.train.nearest import nearest


@dataclass(frozen=True)
class Tower:
    """A vision tower of ``transformers`` as a feature network."""

    source: str
    """Hub id."""
    side: int
    pooling: Pooling


TOWERS = {
    "convnextv2": Tower("facebook/convnextv2-base-22k-224", 224, "mean"),
    "dinov2": Tower("facebook/dinov2-large", 256, "class-token"),
    "dinov3": Tower("facebook/dinov3-vitl16-pretrain-lvd1689m", 256, "class-token"),
    "mae": Tower("facebook/vit-mae-large", 224, "class-token"),
    "siglip": Tower("google/siglip-base-patch16-224", 224, "attention"),
    "siglip2": Tower("google/siglip2-so400m-patch16-256", 224, "attention"),
    "clip": Tower("openai/clip-vit-large-patch14", 256, "class-token"),
    "ijepa": Tower("facebook/ijepa_vith14_22k", 224, "mean"),
}
SCENE_NETWORKS = Path(__file__).parent.parent / "assets" / "networks"
"""Small networks in the package, trained on the built-in world by ``scripts/scene_networks.py``."""
_IN_THE_BOX = {f"scenes-{task}": task for task in ("objects", "layout", "autoencoder")}

NAMES = ("inception", "inception-signed", *TOWERS, "scenes", *_IN_THE_BOX, "pixels")

PIXELS_SIDE = 8


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature network of a recipe, by the name that the command line takes."""

    spec: str
    """``NAME[@SIDE][=WHERE]``, see `load_features`."""
    dtype: FeatureDtype = "float32"
    """What the network computes in."""

    def build(self) -> Features:
        """Raises as `load_features` does."""
        return load_features(self.spec, self.dtype)


def load_features(spec: str, dtype: FeatureDtype = "float32") -> Features:
    """The feature network that a name, or ``NAME=WHERE``, stands for; ``NAME@224`` takes images of 224 pixels.

    ``inception[=FILE]``: FID's, pixels as ``(x - 128) / 128`` like the original graph, ADM and torch-fidelity;
    ``inception-signed`` takes them as ``2 x - 1`` like pytorch-fid and FD-loss. ``dinov2[=FOLDER or hub id]`` and the
    other towers. ``scenes[=MODEL]``: the encoder that a model of ours draws by, or the one of `methods.clip`.
    ``scenes-objects``, ``scenes-layout``, ``scenes-autoencoder``: small networks that were trained on the built-in
    world to tell what there is, where something is, and to pack the picture. ``pixels``: the image itself at 8 pixels a
    side, a network that everybody has. ``NAME=NET.graph.json``,
    ``NAME=resnet20.safetensors`` (of CIFAR), and ``NAME=package.module:function`` for a function without arguments
    that returns ``Features``.

    Raises:
        ValueError: an unknown name, with the nearest known one, or a file that is no such network.
        FileNotFoundError: the weights are not there.
    """
    name, _, where = spec.partition("=")
    name, _, side = name.partition("@")
    if side and not (side.isdecimal() and int(side)):
        raise ValueError(f"--features {spec}: the size after @ must be pixels, such as {name}@224, got {side!r}.")
    found = _load(name, where, dtype, int(side)) if side else _load(name, where, dtype)
    return found if found.preprocessing.dtype == dtype else _with_dtype(found, dtype)


def _load(name: str, where: str, dtype: FeatureDtype, side: int | None = None) -> Features:
    if side is not None and (name.startswith("inception") or ":" in where):
        raise ValueError(f"--features {name}: its size is fixed, leave out @{side}.")
    if name in ("inception", "inception-signed"):
        return inception_features(where or None, is_signed=name.endswith("signed"), dtype=dtype)
    if name in TOWERS:
        from diptych.models.encoders.huggingface import load_huggingface_encoder

        tower = TOWERS[name]
        size = (side or tower.side,) * 2
        encoder = load_huggingface_encoder(where or tower.source)
        return encoder_features(encoder, name=name, pooling=tower.pooling, size=size, dtype=dtype)
    if name == "scenes":
        return scenes_features(where or "diptych-scenes", dtype, side)
    if name == "pixels":
        shrunk = (side or PIXELS_SIDE,) * 2
        return module_features(nn.Flatten(), name=name, dim=3 * shrunk[0] ** 2, size=shrunk, dtype=dtype)
    if name in _IN_THE_BOX and not where:
        where = str(SCENE_NETWORKS / f"{_IN_THE_BOX[name]}.graph.json")
    if where.endswith(".graph.json"):
        graph = load_plain_graph_encoder(where)
        size = graph.trained_size if side is None else (side, side)
        return encoder_features(graph, name=name, pooling="network", size=size, resize="bilinear", dtype=dtype)
    if where.endswith(".safetensors"):
        resnet = load_cifar_resnet(where)
        return encoder_features(
            resnet, name=name, pooling="network", size=(side or 32,) * 2, resize="bilinear", dtype=dtype
        )
    if ":" in where and not Path(where).exists():
        return _from_function(where)
    if where:
        raise ValueError(
            f"--features {name}={where}: give a .graph.json, the .safetensors of a CIFAR ResNet, or module:function."
        )
    raise ValueError(
        f"--features: there is no {name!r}. {nearest(name, NAMES)} Your own network: NAME=module:function."
    )


def inception_features(
    path: str | Path | None = None, *, is_signed: bool = False, dtype: FeatureDtype = "float32"
) -> Features:
    """FID's Inception at its last average pool, with TensorFlow 1's resize.

    Args:
        is_signed: ``2 x - 1`` of images in [0, 1] instead of ``(x - 128) / 128`` of levels.
    """
    half = (0.5, 0.5, 0.5) if is_signed else ORIGINAL_MEAN
    return module_features(
        load_fid_inception(path),
        name="inception",
        dim=2048,
        size=IMAGE_SIZE,
        mean=half,
        std=half,
        resize="tf1-bilinear",
        dtype=dtype,
    )


def scenes_features(
    model: str = "diptych-scenes", dtype: FeatureDtype = "float32", side: int | None = None
) -> Features:
    """The mean token of the encoder whose features a model of ours draws by, or else of the one it looks with.

    Raises:
        ValueError: the model has neither.
    """
    from diptych.unified.folder import load_part, read_manifest, resolve

    folder = resolve(model)
    parts = read_manifest(folder)["parts"]
    encoder = getattr(load_part(folder, "autoencoder"), "encoder", None) if "autoencoder" in parts else None
    if encoder is None and "encoder" in parts:
        encoder = load_part(folder, "encoder")
    if encoder is None or not hasattr(encoder, "image_size"):
        raise ValueError(f"{model} has no vision transformer whose features could be taken.")
    height, width = encoder.image_size if side is None else (side, side)
    return encoder_features(encoder, name="scenes", pooling="mean", size=(height, width), dtype=dtype)


def _from_function(where: str) -> Features:
    module, _, function = where.partition(":")
    try:
        make: Callable[[], Features] = getattr(import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"--features: {where} cannot be imported ({error}). Set PYTHONPATH, or install it.") from error
    found = make()
    if not isinstance(found, Features):
        raise ValueError(
            f"--features: {where} must return diptych.frechet.features.Features, got {type(found).__name__}."
        )
    return found


def _with_dtype(features: Features, dtype: FeatureDtype) -> Features:
    features.preprocessing = replace(features.preprocessing, dtype=dtype)
    return features
