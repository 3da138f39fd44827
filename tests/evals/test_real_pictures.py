"""Scores on real pictures: retrieval by likelihood and by features, with references whose values are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych.data.example import Example, ImageIn, ImageOut, Text, load_pixels
from diptych.evals.real_pictures import answer_choices, encoder_features, score_choices, score_drawings
from diptych.models.encoders.vit import VisionTransformer
from diptych.train.part_configs import PixelsConfig
from diptych.unified import ImagePolicy
from tests.tiny_models import TINY

COLORS = np.random.default_rng(0).integers(0, 256, (12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TINY.build().eval()


def plain(number):
    """A picture of one colour."""
    return np.broadcast_to(COLORS[number], (32, 32, 3)).copy()


def mean_color(images):
    """Features that tell the plain pictures apart by angle."""
    colors = torch.from_numpy(np.stack([load_pixels(image).mean((0, 1)) for image in images])).float()
    return torch.cat([colors - 128, torch.full((len(images), 1), 30.0)], dim=1)


def asked(number, question="what is it?", answer=None):
    return Example((ImageIn(plain(number)), Text(question), Text(answer or f"thing {number}", "assistant", True)))


def test_choices_hold_the_right_answer_among_others():
    examples = [asked(i) for i in range(12)]
    choices = answer_choices(examples, num_answers=5)
    for number, choice in enumerate(choices):
        assert choice.answers[choice.right] == f"thing {number}"
        assert len(set(choice.answers)) == 5
        assert len(choice.parts) == 2
    assert len({choice.right for choice in choices}) > 1  # its place does not give it away
    assert choices == answer_choices(examples, num_answers=5)
    with pytest.raises(ValueError, match="20 other candidates are needed, but only 11 differ"):
        answer_choices(examples, num_answers=21)


def test_the_likeliest_answer_counts(model):
    answers = ["true", "false", "true", "true"]
    examples = [asked(i, "is it so?", answer) for i, answer in enumerate(answers)]
    tables = {table.contender: table for table in score_choices(model, answer_choices(examples), "yes-or-no")}
    likely = []
    for example, answer in zip(examples, answers, strict=True):
        true, false = model.log_likelihood(list(example.parts[:-1]), ["true", "false"])
        likely.append(("true" if true > false else "false") == answer)
    assert tables["model"].overall.value == np.mean(likely)
    assert tables["majority"].overall.value == 0.75
    assert tables["chance"].overall.value == 0.5


def test_without_what_the_picture_says_nothing_is_left(model):
    """After the blank picture is taken off, answers about the blank picture tie, and a tie is no success."""
    examples = [asked(0, answer=f"thing {i}") for i in range(4)]
    _, table, *_, chance = score_choices(model, answer_choices(examples, 4), "names", blank_image=plain(0))
    assert table.contender == "model, less blank"
    assert table.overall.value == 0
    assert table.details["mean_rank"] == 4
    assert chance.overall.value == 0.25


def test_drawings_stand_between_copies_and_the_real_picture(model):
    examples = [Example((ImageIn(plain(i)), Text("change it"), ImageOut(plain((i + 1) % 12)))) for i in range(12)]
    tables, drawn = score_drawings(model, examples, mean_color, "edits", num_candidates=6, num_steps=1)
    found = {table.contender: table for table in tables}
    assert list(found) == ["model", "autoencoder", "copy-input", "chance"]
    assert len(drawn) == 12
    assert found["copy-input"].overall.value == 0  # the input is among the candidates, and nearest to itself
    assert found["copy-input"].details["nearer_than_input"] == 0
    assert found["chance"].overall.value == pytest.approx(1 / 6)


def test_the_real_picture_itself_is_found():
    """In pixels as the generation space the row of what perfect drawing reaches is perfect."""
    torch.manual_seed(0)
    model = replace(TINY, features=PixelsConfig(), images=ImagePolicy(size=(16, 16))).build().eval()
    examples = [Example((Text(f"thing {i}"), ImageOut(plain(i)))) for i in range(12)]
    tables, _ = score_drawings(model, examples, mean_color, "drawing", num_candidates=12, num_steps=1)
    assert tables[1].contender == "autoencoder"
    assert tables[1].overall.value == 1
    assert tables[1].details["mean_rank"] == 1


def test_pictures_of_one_group_are_no_rivals(model):
    examples = [Example((Text("it"), ImageOut(plain(i))), key=str(i // 6)) for i in range(12)]
    with pytest.raises(ValueError, match="8 other candidates are needed, but only 6 differ"):
        score_drawings(model, examples, mean_color, "drawing", 9, group=lambda example: example.key)


def test_features_of_an_encoder_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    encoder = VisionTransformer(image_size=32, patch_size=8, dim=16, num_layers=1, num_heads=2, pooling="mean").eval()
    images = [plain(i) for i in range(5)]
    features = encoder_features(encoder, batch_size=2)(images)
    assert features.shape == (5, 16)
    torch.testing.assert_close(features[3:4], encoder_features(encoder)(images[3:4]))
