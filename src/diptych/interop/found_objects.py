"""From the logits of detectors to boxes, names and confidences in GenEval's terms; pure functions.

Names are GenEval's eighty, which are COCO's with three of them told more clearly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from diptych.data.example import Pixels
from diptych.interop.yolox import COLOR_RGB, box_color, keep_apart
from diptych.scenes.rules import Box, Detection

MIN_SCORE = 0.05
"""What is less certain is not reported; the thresholds of the rules are above."""

# fmt: off
GENEVAL_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)
# fmt: on
"""GenEval's names in COCO's order."""

_OTHER_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "tv monitor": "tv",
    "hair dryer": "hair drier",
    "doughnut": "donut",
}
"""What published detectors of COCO call the same classes."""


def geneval_names(labels: Mapping[int, str]) -> dict[int, str]:
    """GenEval's name of each label of a detector; labels that GenEval does not have are left out."""
    plain = {index: name.lower().replace("_", " ").strip() for index, name in labels.items()}
    said = {index: _OTHER_NAMES.get(name, name) for index, name in plain.items()}
    return {index: name for index, name in said.items() if name in GENEVAL_CLASSES}


@dataclass(frozen=True)
class FoundMask:
    """One instance that a segmentation network found."""

    label: int
    score: float
    box: Box
    mask: NDArray[np.bool_]


def found_masks(
    class_logits: Float[Tensor, "queries labels_and_none"],
    mask_logits: Float[Tensor, "queries mask_height mask_width"],
    image_size: tuple[int, int],
    padded: tuple[int, int],
    valid: tuple[int, int],
) -> list[FoundMask]:
    """Instances as Mask2Former's paper makes them (arXiv 2112.01527, appendix; MaskFormer and OneFormer alike).

    The best pairs of a query and a label, as many as there are queries; the confidence is the probability of the label
    times the mean probability of the pixels in the mask.

    Args:
        class_logits: the last label is "no object".
        image_size: (height, width) of the picture.
        padded: (height, width) of the network's input.
        valid: (height, width) of the picture in that input, at its top left.
    """
    scores = class_logits.float().softmax(-1)[:, :-1]
    num_queries, num_labels = scores.shape
    best, places = scores.flatten().topk(min(num_queries, scores.numel()))
    found = []
    for score, place in zip(best.tolist(), places.tolist(), strict=True):
        if score <= MIN_SCORE:
            break
        logits = mask_logits[place // num_labels].float()[None, None]
        whole = interpolate(logits, size=padded, mode="bilinear", align_corners=False)[..., : valid[0], : valid[1]]
        own = interpolate(whole, size=image_size, mode="bilinear", align_corners=False)[0, 0]
        mask = own > 0
        if not bool(mask.any()):
            continue
        certain = score * float(own[mask].sigmoid().mean())
        if certain > MIN_SCORE:
            found.append(FoundMask(place % num_labels, certain, mask_box(mask), mask.cpu().numpy()))
    return found


def mask_box(mask: Bool[Tensor, "height width"]) -> Box:
    """The smallest box around a mask that is not empty."""
    rows, columns = (torch.nonzero(mask.any(dim=axis))[:, 0] for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


def phrase_scores(
    logits: Float[Tensor, "queries tokens"], phrases: Sequence[Sequence[int]]
) -> Float[Tensor, "queries phrases"]:
    """How certain each phrase is: the mean probability of its tokens, as Grounding DINO is evaluated on COCO."""
    probabilities = logits.float().sigmoid()
    return torch.stack([probabilities[:, list(places)].mean(dim=1) for places in phrases], dim=1)


def corners(boxes: Float[Tensor, "queries 4"], scale: tuple[float, float]) -> Float[Tensor, "queries 4"]:
    """x0, y0, x1, y1 in pixels of boxes given by middle and size.

    Args:
        boxes: middle x, middle y, width, height, each from 0 to 1.
        scale: (height, width) in pixels of what 1 is.
    """
    sizes = torch.tensor([scale[1], scale[0]], dtype=torch.float32, device=boxes.device)
    middle, half = boxes[:, :2].float() * sizes, boxes[:, 2:].float() * sizes / 2
    return torch.cat([middle - half, middle + half], dim=1)


def best_boxes(
    scores: Float[Tensor, "queries labels"], boxes: Float[Tensor, "queries 4"]
) -> list[tuple[int, float, list[float]]]:
    """Label, confidence and corners: one label a box, its best, and of overlapping boxes of a label the best one."""
    certain, labels = scores.max(dim=1)
    found = []
    for label in labels[certain > MIN_SCORE].unique().tolist():
        own = torch.nonzero((labels == label) & (certain > MIN_SCORE))[:, 0]
        for place in keep_apart(boxes[own].cpu(), certain[own].cpu()):
            found.append((label, float(certain[own[place]]), boxes[own[place]].tolist()))
    return found


def detection(image: Pixels, name: str, score: float, box: Sequence[float]) -> Detection:
    """An object whose colour is that of the middle of its box, the box cut at the border of the picture."""
    x0, y0, x1, y1 = (float(value) for value in box)
    width, height = float(image.shape[1]), float(image.shape[0])
    cut = (_within(x0, width), _within(y0, height), _within(x1, width), _within(y1, height))
    return Detection(name, score, cut, box_color(image, cut))


def _within(value: float, limit: float) -> float:
    return min(max(value, 0.0), limit)


def mask_color(image: Pixels, mask: NDArray[np.bool_]) -> str:
    """The nearest of GenEval's ten colours to the median of the pixels of a mask, by Euclidean distance in RGB."""
    color: NDArray[np.float64] = np.median(image[mask], axis=0)
    return min(COLOR_RGB, key=lambda name: float(np.square(color - COLOR_RGB[name]).sum()))
