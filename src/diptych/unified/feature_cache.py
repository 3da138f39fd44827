"""Encoding the images of a source once, into files that trainings read instead of encoding: ``diptych cache``."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diptych.data.example import ImageLike, Text, load_pixels
from diptych.data.feature_cache import image_key
from diptych.data.feature_files import CacheMaker, FeatureFiles, FeatureWriter, StoredDtype
from diptych.data.sources.protocol import BadRecord
from diptych.unified.model import UnifiedModel

if TYPE_CHECKING:
    from diptych.data.sources.protocol import Source

SECONDS_BETWEEN_NEWS = 10.0
_NOT_ENCODING = {"decoder", "unet", "vae", "post_quant_conv", "null_features", "cell_labels", "image_labels"}
"""Names in a generation space of what has no part in encoding."""


@dataclass
class CacheReport:
    """What a call of `fill_files` did.

    Attributes:
        encoded: images encoded now.
        present: images that the cache had already.
        keyless: images without a key, which cannot be found again and are encoded in every step.
        broken: records that could not be read.
    """

    encoded: int = 0
    present: int = 0
    keyless: int = 0
    broken: int = 0
    seconds: float = 0.0

    def to_text(self) -> str:
        rate = self.encoded / self.seconds if self.seconds else 0.0
        parts = [
            f"encoded {self.encoded:,} images in {self.seconds:.0f} s ({rate:.1f}/s)",
            f"{self.present:,} were there",
        ]
        parts += [f"{self.keyless:,} have no key and were left out"] * bool(self.keyless)
        parts += [f"{self.broken:,} records are broken"] * bool(self.broken)
        return "; ".join(parts)


def maker_of(model: UnifiedModel) -> CacheMaker:
    """What the features of images to be drawn depend on in this model.

    Raises:
        ValueError: the model draws nothing.
    """
    if model.autoencoder is None:
        raise ValueError("this model has no generation space, so there are no features to cache.")
    space = model.autoencoder
    config = {name: value for name, value in space.config_dict().items() if not name.startswith("decoder")}
    digest = hashlib.sha256(json.dumps([type(space).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(space.state_dict().items()):
        if isinstance(tensor, Tensor) and not _NOT_ENCODING & set(name.split(".")):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    policy = model.images
    preprocessing = f"{policy.resize}, {policy.filter}, multiple of {policy.multiple}"
    return CacheMaker(digest.hexdigest(), preprocessing, policy.size)


@torch.inference_mode()
def fill_files(
    model: UnifiedModel,
    source: "Source",
    folder: str | Path,
    dtype: StoredDtype = "bfloat16",
    part: tuple[int, int] = (0, 1),
    batch_size: int = 64,
    shard_size: int = 1024,
    tell: Callable[[str], None] = print,
) -> CacheReport:
    """Encodes the images of a source that the folder lacks, each once.

    Args:
        part: (number, count): this process's share of the records, where several fill one folder.
        shard_size: images of a shard: what a kill can lose.

    Raises:
        ValueError: the folder is of another encoder, preprocessing, size or dtype; a bad ``part``.
    """
    number, count = part
    if not 0 <= number < count:
        raise ValueError(f"part must be I/N with 0 <= I < N, got {number}/{count}.")
    model.eval()
    maker = maker_of(model)
    writer = FeatureWriter(folder, maker, dtype, shard_size)
    present = FeatureFiles(folder, maker)
    report = CacheReport()
    met: set[str] = set()
    pending: dict[torch.Size, dict[str, Tensor]] = {}
    started = shown = time.perf_counter()

    def encode(group: dict[str, Tensor]) -> None:
        writer.add(list(group), model.encode_outputs(torch.stack(list(group.values())).to(model.device)))
        report.encoded += len(group)

    for image in _images(source, number, count, report):
        key = image_key(image)
        if key is None:
            report.keyless += 1
            continue
        if key in met:
            continue
        met.add(key)
        if key in present:
            report.present += 1
            continue
        prepared = model.images.prepare(load_pixels(image), True)
        group = pending.setdefault(prepared.shape, {})
        group[key] = prepared
        if len(group) == batch_size:
            encode(pending.pop(prepared.shape))
            if time.perf_counter() - shown > SECONDS_BETWEEN_NEWS:
                shown = time.perf_counter()
                tell(f"encoded {report.encoded:,} images ({report.encoded / (shown - started):.1f}/s)")
    for group in pending.values():
        encode(group)
    writer.close()
    report.seconds = time.perf_counter() - started
    return report


def _images(source: "Source", number: int, count: int, report: CacheReport) -> Iterator[ImageLike]:
    """The images of every ``count``-th record from ``number`` on, in order."""
    for index in range(number, len(source), count):
        try:
            parts = source.example(index, 0).parts
        except BadRecord:
            report.broken += 1
            continue
        yield from (part.image for part in parts if not isinstance(part, Text) and part.image is not None)
