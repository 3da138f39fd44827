import pytest
import torch

from diptych.evals.retrieval import retrieval_tables
from diptych.evals.scores_file import score_boards

CAPTIONS = [f"caption {number}" for number in range(20)]


def test_equal_features_are_retrieved_and_chance_is_one_in_all():
    features = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    model, chance = retrieval_tables(features, 3 * features, CAPTIONS)
    assert model.overall.value == 1 and chance.overall.value == pytest.approx(1 / 20, abs=1e-12)
    assert list(model.categories) == ["picture to caption", "caption to picture"]
    assert score_boards([model, chance])[0].title == "Retrieval"


def test_features_that_say_nothing_are_right_nowhere():
    """All ties: what cannot be told from a wrong one is no hit."""
    model, _ = retrieval_tables(torch.ones(20, 4), torch.ones(20, 4), CAPTIONS)
    assert model.overall.value == 0


def test_both_directions_are_told_apart():
    """Two pictures are nearest to the first caption, which is nearest to one of them only."""
    images = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    model, _ = retrieval_tables(images, texts, ["a", "b"])
    assert model.categories["picture to caption"].value == 0.5
    assert model.categories["caption to picture"].value == 1.0


def test_an_equal_caption_of_another_picture_is_right():
    features = torch.eye(4)
    swapped = features[[1, 0, 2, 3]]
    assert retrieval_tables(features, swapped, ["a", "b", "c", "d"])[0].overall.value == 0.5
    model, chance = retrieval_tables(features, swapped, ["a", "a", "c", "d"])
    assert model.overall.value == 1
    assert chance.overall.value == pytest.approx((2 * 2 / 4 + 2 * 1 / 4) / 4)


def test_every_picture_needs_its_caption():
    with pytest.raises(ValueError, match="retrieval: 4 pictures but 3 captions"):
        retrieval_tables(torch.eye(4), torch.eye(4), ["a", "b", "c"])
