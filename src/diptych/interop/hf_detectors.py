"""Detectors of ``transformers`` for GenEval's prompts: ``KIND=FOLDER_OR_ID``.

OWLv2 (arXiv 2306.09683) and Grounding DINO (arXiv 2303.05499) are asked for GenEval's eighty classes by name; the
segmentation networks Mask2Former, MaskFormer and OneFormer and the detectors of DETR's kind know classes of their own,
of which those of GenEval count. None of them is GenEval's detector: that is Mask2Former Swin-S of another training
framework, with colours by CLIP, so the record says that these are not official.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.data.example import Pixels
from diptych.interop.found_objects import (
    GENEVAL_CLASSES,
    MIN_SCORE,
    best_boxes,
    corners,
    detection,
    found_masks,
    geneval_names,
    mask_color,
    phrase_scores,
)
from diptych.scenes.rules import Detection, RuleSettings

ASKED_RULES = {
    "owlv2": RuleSettings(threshold=0.1, counting_threshold=0.1),
    "grounding-dino": RuleSettings(threshold=0.25, counting_threshold=0.25),
}
"""Thresholds of detectors that are asked by name, whose confidences are lower than GenEval's thresholds (0.3, and 0.9
for counting) presume: those from which ``transformers`` itself reports a box. Not tuned."""

MASKS = ("mask2former", "maskformer", "oneformer")
KINDS = ("owlv2", "grounding-dino", *MASKS, "detr")

_MODELS = {
    "owlv2": "Owlv2ForObjectDetection",
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "maskformer": "MaskFormerForInstanceSegmentation",
    "oneformer": "OneFormerForUniversalSegmentation",
    "detr": "AutoModelForObjectDetection",
}
_TEXT_TOKENS = {"owlv2": 16, "oneformer": 77}
_HASHED = (".json", ".safetensors", ".txt")


class HuggingFaceDetector:
    """A detector with its image processor and, where it is asked by name, its tokenizer.

    Args:
        kind: of ``KINDS``.
        name, revision: for the record of the judge.
        rules: thresholds under which GenEval's rules read it; None for GenEval's own.

    Raises:
        ValueError: it knows no class of GenEval.
    """

    def __init__(
        self,
        kind: str,
        model: Any,
        processor: Any,
        tokenizer: Any = None,
        *,
        name: str,
        revision: str,
        rules: RuleSettings | None = None,
    ) -> None:
        self.kind, self.model, self.processor, self.tokenizer = kind, model.eval(), processor, tokenizer
        self.name, self.revision = name, revision
        self.rules = rules or ASKED_RULES.get(kind)
        self.is_asked = kind in ASKED_RULES
        self.names = dict(enumerate(GENEVAL_CLASSES)) if self.is_asked else geneval_names(model.config.id2label)
        if not self.names:
            some = ", ".join(list(model.config.id2label.values())[:4])
            raise ValueError(
                f"{name} knows no class of GenEval: its labels are {some}, … Give a detector that was trained on COCO."
            )

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = {"name": f"{self.kind} {self.name}", "revision": self.revision, "official": False}
        record["colors"] = "nearest of ten to the median of the " + ("mask" if self.kind in MASKS else "box's middle")
        record["overlapping_boxes"] = "suppressed" if self.is_asked else "kept"
        lacking = [name for name in GENEVAL_CLASSES if name not in self.names.values()]
        return {**record, **({"lacks": lacking} if lacking else {})}

    @torch.inference_mode()
    def detect(self, ids: Sequence[str], images: Sequence[Pixels]) -> list[list[Detection]]:
        """All objects above ``MIN_SCORE`` of each picture that are of GenEval's classes."""
        method = {"owlv2": self._owl, "grounding-dino": self._grounded, "detr": self._detr}.get(self.kind, self._masks)
        return [method(image) for image in images]

    def _pixels(self, image: Pixels, **more: Any) -> dict[str, Tensor]:
        inputs = self.processor(images=[image], return_tensors="pt", input_data_format="channels_last", **more)
        wanted = ("pixel_values", "pixel_mask")
        return {key: inputs[key].to(self.model.device) for key in wanted if key in inputs}

    def _owl(self, image: Pixels) -> list[Detection]:
        """OWLv2 sees the picture at the top left of a square, of which its boxes are shares."""
        output = self.model(pixel_values=self._pixels(image)["pixel_values"], **self._class_prompts)
        side = float(max(image.shape[:2]))
        return self._named(image, output.logits[0].float().sigmoid(), corners(output.pred_boxes[0], (side, side)))

    @cached_property
    def _class_prompts(self) -> dict[str, Tensor]:
        texts = [f"a photo of a {name}" for name in GENEVAL_CLASSES]
        length = min(_TEXT_TOKENS["owlv2"], self.model.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def _grounded(self, image: Pixels) -> list[Detection]:
        pixels, scores, boxes = self._pixels(image), [], []
        for tokens, phrases in self._captions:
            output = self.model(**pixels, **tokens)
            scores.append(phrase_scores(output.logits[0], phrases))
            boxes.append(corners(output.pred_boxes[0], (float(image.shape[0]), float(image.shape[1]))))
        # Queries of one caption know nothing of the classes of another one.
        whole = torch.block_diag(*scores)
        return self._named(image, whole, torch.cat(boxes))

    @cached_property
    def _captions(self) -> list[tuple[dict[str, Tensor], list[list[int]]]]:
        """GenEval's classes as ``name. name. …``, in as many captions as their length takes; each with the places of
        each name's tokens."""
        found, start = [], 0
        while start < len(GENEVAL_CLASSES):
            size = len(GENEVAL_CLASSES) - start
            while True:
                names = GENEVAL_CLASSES[start : start + size]
                tokens = self.tokenizer(
                    " ".join(f"{name}." for name in names),
                    return_offsets_mapping=True,
                    return_token_type_ids=True,
                    return_tensors="pt",
                )
                if tokens["input_ids"].shape[1] <= self.model.config.max_text_len or size == 1:
                    break
                size = (size + 1) // 2
            phrases, begin = [], 0
            for name in names:
                end = begin + len(name)
                offsets = enumerate(tokens["offset_mapping"][0].tolist())
                phrases.append([place for place, (low, high) in offsets if begin <= low < high <= end])
                begin = end + 2
            kept = ("input_ids", "attention_mask", "token_type_ids")
            found.append(({key: tokens[key].to(self.model.device) for key in kept}, phrases))
            start += size
        return found

    def _named(self, image: Pixels, scores: Tensor, boxes: Tensor) -> list[Detection]:
        return [detection(image, self.names[label], score, box) for label, score, box in best_boxes(scores, boxes)]

    def _detr(self, image: Pixels) -> list[Detection]:
        """By the post-processing of the network's own image processor, which knows its kind of logits."""
        output = self.model(**self._pixels(image))
        size = [(image.shape[0], image.shape[1])]
        found = self.processor.post_process_object_detection(output, threshold=MIN_SCORE, target_sizes=size)[0]
        rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        return [detection(image, self.names[label], score, box) for label, score, box in rows if label in self.names]

    def _masks(self, image: Pixels) -> list[Detection]:
        task = {"task_inputs": ["instance"]} if self.kind == "oneformer" else {}
        pixels = self._pixels(image, **task)
        output = self.model(**pixels, **({"task_inputs": self._task} if task else {}))
        padded = (pixels["pixel_values"].shape[-2], pixels["pixel_values"].shape[-1])
        seen = pixels["pixel_mask"][0].bool() if "pixel_mask" in pixels else torch.ones(padded, dtype=torch.bool)
        valid = (int(seen.any(dim=1).sum()), int(seen.any(dim=0).sum()))
        size = (image.shape[0], image.shape[1])
        found = found_masks(output.class_queries_logits[0], output.masks_queries_logits[0], size, padded, valid)
        return [
            Detection(self.names[one.label], one.score, one.box, mask_color(image, one.mask))
            for one in found
            if one.label in self.names
        ]

    @cached_property
    def _task(self) -> Tensor:
        length = min(_TEXT_TOKENS["oneformer"], int(self.model.config.task_seq_len))
        text = ["the task is instance"]
        tokens = self.tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = tokens["input_ids"]
        return ids.to(self.model.device)


def is_detector_spelling(text: str) -> bool:
    """Whether it is ``KIND=FOLDER_OR_ID``, as opposed to a file."""
    return "=" in text and not Path(text).is_file()


def load_detector(text: str, device: str = "cpu", rules: RuleSettings | None = None) -> HuggingFaceDetector:
    """
    Args:
        text: ``KIND=FOLDER_OR_ID``; a folder as ``save_pretrained`` writes it, or the id of a model that is in the
            cache of ``transformers`` or can be fetched.
        rules: other thresholds than the kind's own.

    Raises:
        FileNotFoundError: there is no such folder or model.
        ValueError: there is no such kind, or the model is of another one.
    """
    kind, _, where = text.partition("=")
    if kind not in KINDS or not where:
        raise ValueError(f"--detector: {text!r} is no KIND=FOLDER_OR_ID. Kinds: {', '.join(KINDS)}.")
    try:
        import transformers
    except ImportError:
        raise ValueError(f"--detector {kind} needs transformers: pip install 'diptych[hf]'.") from None
    try:
        config = transformers.AutoConfig.from_pretrained(where)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise FileNotFoundError(
            f"--detector: there is no detector at {where} ({first}). Give a folder with config.json, weights and "
            "processor, or the id of a model."
        ) from None
    _check_kind(kind, config, where)
    model = getattr(transformers, _MODELS[kind]).from_pretrained(where, dtype=torch.float32)
    return HuggingFaceDetector(
        kind,
        model.to(device),
        _processor(where),
        transformers.AutoTokenizer.from_pretrained(where) if kind in (*ASKED_RULES, "oneformer") else None,
        name=Path(where).name or where,
        revision=_revision(where, config),
        rules=rules,
    )


def _check_kind(kind: str, config: Any, where: str) -> None:
    """
    Raises:
        ValueError: the configuration is of another kind.
    """
    own = str(config.model_type).replace("_", "-")
    named = [name for name in KINDS if name != "detr"]
    if own == kind or (kind == "detr" and own not in named):
        return
    way_out = f"Write --detector {own}={where}." if own in named else f"Write --detector detr={where}."
    raise ValueError(f"--detector: {where} is of the kind {config.model_type}, not {kind}. {way_out}")


def _processor(where: str) -> Any:
    """The image processor that needs no torchvision."""
    from transformers import AutoImageProcessor

    # OneFormer's would look for the names of its classes on the network, which only its training needs.
    return AutoImageProcessor.from_pretrained(where, backend="pil", class_info_file=None)


def _revision(where: str, config: Any) -> str:
    """The commit of a model of the hub, or a hash over the files of a folder."""
    folder = Path(where)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None) or "unknown")
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in _HASHED):
        digest.update(f"{file.name}\0".encode())
        with file.open("rb") as handle:
            while block := handle.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]
