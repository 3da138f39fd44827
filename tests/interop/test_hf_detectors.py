"""Detectors of ``transformers``: boxes and names of logits made by hand, and tiny random networks as they are saved."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diptych.evals.tasks.geneval import OFFICIAL_RULES, geneval_task, judge_detections
from diptych.interop.found_objects import (
    GENEVAL_CLASSES,
    best_boxes,
    corners,
    detection,
    found_masks,
    geneval_names,
    mask_color,
    phrase_scores,
)
from diptych.interop.hf_detectors import ASKED_RULES, KINDS, is_detector_spelling, load_detector
from diptych.scenes.rules import Detection, RuleSettings

transformers = pytest.importorskip("transformers")

COCO_WORDS = sorted({word for name in GENEVAL_CLASSES for word in name.split()})
TINY_SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2,
             "out_features": ["stage1", "stage2", "stage3", "stage4"]}  # fmt: skip


def logit(probability):
    return float(np.log(probability / (1 - probability)))


def test_names_are_genevals():
    assert len(GENEVAL_CLASSES) == 80 == len(set(GENEVAL_CLASSES))
    labels = {0: "person", 64: "mouse", 7: "N/A", 2: "motorbike", 3: "Dining_Table", 9: "tvmonitor", 5: "playingfield"}
    assert geneval_names(labels) == {
        0: "person", 64: "computer mouse", 2: "motorcycle", 3: "dining table", 9: "tv"
    }  # fmt: skip


def test_names_are_those_of_the_bundled_detector(test_data):
    stored = json.loads((test_data / "models" / "detector" / "classes.json").read_text())
    assert tuple(stored["geneval"]) == GENEVAL_CLASSES
    assert list(geneval_names(dict(enumerate(stored["coco"]))).values()) == stored["geneval"]


def test_boxes_and_labels_of_hand_made_logits():
    """Two boxes nearly alike of one label: the better stays. One box has the best of two labels only."""
    probabilities = torch.tensor([[0.9, 0.2], [0.8, 0.1], [0.3, 0.6], [0.04, 0.01]])
    middles = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.5, 0.5, 0.4, 0.22], [0.5, 0.5, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]])
    found = best_boxes(probabilities, corners(middles, (100.0, 200.0)))
    assert [(label, pytest.approx(score)) for label, score, _ in found] == [(0, 0.9), (1, 0.6)]
    assert found[0][2] == pytest.approx([60, 40, 140, 60])
    image = np.zeros((50, 100, 3), np.uint8)
    image[:, :] = (200, 30, 30)
    cut = detection(image, "car", 0.5, [-5.0, 10.0, 140.0, 60.0])
    assert cut == Detection("car", 0.5, (0.0, 10.0, 100.0, 50.0), "red")


def test_a_phrase_is_as_certain_as_its_tokens_on_average():
    logits = torch.tensor([[logit(0.2), logit(0.8), logit(0.4), -torch.inf]])
    assert phrase_scores(logits, [[0], [1, 2], [3]])[0].tolist() == pytest.approx([0.2, 0.6, 0.0])


def test_masks_of_hand_made_logits():
    """A network's input of 16 x 16 whose lower half is padding, of a picture of 8 x 16."""
    class_logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 2.0, 0.0]])
    masks = torch.full((3, 16, 16), logit(0.1))
    masks[0, 2:6, 4:9] = logit(0.9)
    masks[1] = 5.0  # everything, but it is no object
    masks[2, 8:] = logit(0.9)  # in the padding alone
    found = found_masks(class_logits, masks, (8, 16), (16, 16), (8, 16))
    assert [one.label for one in found] == [0]
    probability = float(class_logits[0].softmax(0)[0])
    assert found[0].box == (4.0, 2.0, 9.0, 6.0) and found[0].mask.sum() == 20
    assert found[0].score == pytest.approx(0.9 * probability, abs=1e-5)
    image = np.zeros((8, 16, 3), np.uint8)
    image[found[0].mask] = (240, 220, 50)
    assert mask_color(image, found[0].mask) == "yellow"
    # Twice as large a picture has twice as large a box.
    assert found_masks(class_logits, masks, (16, 32), (16, 16), (8, 16))[0].box == pytest.approx((8, 4, 18, 12), abs=1)


def clip_tokenizer(folder, length):
    letters = [chr(code) for code in range(97, 123)]
    vocab = {token: index for index, token in enumerate(
        [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"])}  # fmt: skip
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)
    tokenizer.save_pretrained(folder)
    return len(vocab)


def tiny_owl(folder):
    size = clip_tokenizer(folder, 16)
    text = {"vocab_size": size, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16, "pad_token_id": 0,
            "bos_token_id": size - 2, "eos_token_id": size - 1}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
    transformers.Owlv2ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def tiny_grounding_dino(folder, max_text_len=256):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *COCO_WORDS]
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    tokenizer.save_pretrained(folder)
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 256}  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(**{**TINY_SWIN, "out_features": ["stage2", "stage3", "stage4"]}),
        text_config=transformers.BertConfig(**text), d_model=32, num_queries=6, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
        max_text_len=max_text_len,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160}).save_pretrained(folder)


def tiny_universal(folder, kind):
    labels = {0: "person", 1: "sofa", 2: "playingfield"}
    common = {"id2label": labels, "num_queries": 5}
    if kind == "maskformer":
        detr = transformers.DetrConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
            encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5,
        )  # fmt: skip
        config = transformers.MaskFormerConfig(
            backbone_config=transformers.SwinConfig(**TINY_SWIN), decoder_config=detr, fpn_feature_size=32,
            mask_feature_size=32, id2label=labels,
        )  # fmt: skip
        transformers.MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    elif kind == "mask2former":
        config = transformers.Mask2FormerConfig(
            backbone_config=transformers.SwinConfig(**TINY_SWIN), feature_size=32, mask_feature_size=32, hidden_dim=32,
            encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
            **common,
        )  # fmt: skip
        transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    else:
        size = clip_tokenizer(folder, 77)
        config = transformers.OneFormerConfig(
            backbone_config=transformers.SwinConfig(**TINY_SWIN), conv_dim=32, mask_dim=32, hidden_dim=32,
            encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
            text_encoder_vocab_size=size, text_encoder_width=32, text_encoder_num_layers=1,
            text_encoder_context_length=77, is_training=False, query_dec_layers=1, use_task_norm=True, **common,
        )  # fmt: skip
        transformers.OneFormerForUniversalSegmentation(config).save_pretrained(folder)
    name = {"mask2former": "Mask2Former", "maskformer": "MaskFormer", "oneformer": "OneFormer"}[kind]
    processor = getattr(transformers, f"{name}ImageProcessorPil")
    processor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    if kind == "oneformer":
        # As published: the classes' names lie in another repository, which must not be looked for.
        file = folder / "preprocessor_config.json"
        stored = {**json.loads(file.read_text()), "class_info_file": "coco_panoptic.json", "repo_path": "no/where"}
        file.write_text(json.dumps(stored))


def tiny_detr(folder):
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, use_pretrained_backbone=False, backbone=None, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_attention_heads=2, num_queries=5, id2label={0: "N/A", 1: "person", 2: "remote"},
    )  # fmt: skip
    transformers.DetrForObjectDetection(config).save_pretrained(folder)
    transformers.DetrImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)


def save(kind, folder):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    makers = {"owlv2": tiny_owl, "grounding-dino": tiny_grounding_dino, "detr": tiny_detr}
    makers[kind](folder) if kind in makers else tiny_universal(folder, kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_networks_from_the_real_layout(kind, tmp_path):
    folder = save(kind, tmp_path / "net")
    detector = load_detector(f"{kind}={folder}")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 56, 3), np.uint8), rng.integers(0, 256, (64, 48, 3), np.uint8)]
    both = detector.detect(["a", "b"], images)
    assert sum(map(len, both)) > 0
    for image, found in zip(images, both, strict=True):
        assert detector.detect(["again"], [image])[0] == found  # alone as in company, and always alike
        for one in found:
            assert one.name in GENEVAL_CLASSES and 0.05 < one.confidence <= 1 and one.color is not None
            assert 0 <= one.box[0] <= one.box[2] <= image.shape[1] and 0 <= one.box[1] <= one.box[3] <= image.shape[0]
    record = detector.record()
    assert record["official"] is False and record["name"] == f"{kind} net" and len(record["revision"]) == 16
    if kind in ASKED_RULES:
        assert "lacks" not in record and detector.rules == ASKED_RULES[kind]
    else:
        assert len(record["lacks"]) == 78 and detector.rules is None


def test_outputs_of_a_network_end_in_the_right_boxes(tmp_path):
    """Logits put in place of the network's own: the way from them to GenEval's names is that of real weights."""
    detector = load_detector(f"owlv2={save('owlv2', tmp_path / 'owl')}")
    logits = torch.full((1, 4, 80), -9.0)
    logits[0, 1, GENEVAL_CLASSES.index("tv remote")] = logit(0.7)
    boxes = torch.tensor([[[0.5, 0.25, 0.5, 0.25]]]).repeat(1, 4, 1)
    seen = {}

    def network(**inputs):
        seen.update(inputs)
        return SimpleNamespace(logits=logits, pred_boxes=boxes)

    detector.model = type("Network", (), {"config": detector.model.config, "device": "cpu",
                                          "__call__": lambda self, **inputs: network(**inputs)})()  # fmt: skip
    (found,) = detector.detect(["a"], [np.zeros((40, 80, 3), np.uint8)])
    # Shares of the square around the wide picture, not of the picture.
    assert len(found) == 1 and found[0].name == "tv remote" and found[0].box == pytest.approx((20, 10, 60, 30))
    assert seen["input_ids"].shape[0] == 80 and seen["pixel_values"].shape == (1, 3, 32, 32)


def test_captions_are_cut_where_the_network_takes_no_longer_ones(tmp_path):
    tiny_grounding_dino(tmp_path, max_text_len=64)
    detector = load_detector(f"grounding-dino={tmp_path}")
    captions = detector._captions
    assert len(captions) > 1 and all(tokens["input_ids"].shape[1] <= 64 for tokens, _ in captions)
    words = [
        [detector.tokenizer.decode([tokens["input_ids"][0, place]]) for place in places]
        for tokens, phrases in captions
        for places in phrases
    ]
    assert [" ".join(word) for word in words] == list(GENEVAL_CLASSES)
    assert isinstance(detector.detect(["a"], [np.zeros((40, 40, 3), np.uint8)])[0], list)


def test_thresholds_of_the_kind_are_in_the_record_of_the_judge(tmp_path):
    detector = load_detector(f"owlv2={save('owlv2', tmp_path / 'owl')}")
    prompts = tmp_path / "evaluation_metadata.jsonl"
    program = {"tag": "counting", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of one cat"}
    prompts.write_text(json.dumps(program))
    task = geneval_task(prompts, detector=detector)
    record = task.judge_record()
    assert record["rules"]["counting_threshold"] == 0.1 and record["detector"]["official"] is False
    cat = [Detection("cat", 0.2, (0.0, 0.0, 9.0, 9.0))]
    assert judge_detections(program, cat, task.rules)["correct"]
    assert not judge_detections(program, cat, OFFICIAL_RULES)["correct"]
    own = load_detector(f"owlv2={tmp_path / 'owl'}", rules=RuleSettings(threshold=0.3, counting_threshold=0.4))
    assert geneval_task(prompts, detector=own).rules.counting_threshold == 0.4


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"'yolo=x' is no KIND=FOLDER_OR_ID\. Kinds: owlv2, grounding-dino"):
        load_detector("yolo=x")
    with pytest.raises(FileNotFoundError, match=r"there is no detector at .*none"):
        load_detector(f"owlv2={tmp_path / 'none'}")
    folder = save("mask2former", tmp_path / "net")
    with pytest.raises(ValueError, match=r"is of the kind mask2former, not owlv2\. Write --detector mask2former="):
        load_detector(f"owlv2={folder}")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["id2label"] = {"0": "wall", "1": "building", "2": "sky"}
    config["label2id"] = {"wall": 0, "building": 1, "sky": 2}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="net knows no class of GenEval: its labels are wall, building, sky"):
        load_detector(f"mask2former={folder}")
    assert is_detector_spelling("owlv2=google/owlv2-base-patch16") and not is_detector_spelling("net.graph.json")
