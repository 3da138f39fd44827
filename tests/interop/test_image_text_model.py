"""A tiny LLaVA, saved and loaded by the classes of transformers, as a contender and as a judge."""

import numpy as np
import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from diptych.cli.judges import open_judge
from diptych.data.example import ImageIn, Text
from diptych.evals.judges import ContenderJudge, Query, ask_all
from diptych.evals.protocol import Request
from diptych.interop.image_text_model import load_image_text_model

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "yes", "no", "Yes", "Is", "it", "red", "?", "one", "two", "word"]
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)
RED = np.full((20, 30, 3), (250, 20, 20), np.uint8)
BLUE = np.full((20, 30, 3), (20, 20, 250), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # else its answers would hardly depend on the picture
    place = tmp_path_factory.mktemp("llava")
    model.save_pretrained(place), processor.save_pretrained(place)
    return place


def test_answers_and_first_tokens_are_those_of_the_model(folder):
    contender = load_image_text_model(str(folder), "cpu")
    settings = contender.settings("text", {"max_new_tokens": 3})
    request = Request("a", "text", (ImageIn(RED), Text("Is it red ?")), settings=settings)
    (answer,) = contender.write([request])
    assert set(answer.split()) <= set(WORDS) and contender.write([request]) == [answer]
    inputs = contender._inputs(request)
    with torch.inference_mode():
        expected = contender.model(**inputs).logits[0, -1].softmax(-1)
    (tokens,) = contender.first_tokens([request])
    yes = tokens.probability_of(["yes"])
    assert yes == pytest.approx(float(expected[WORDS.index("yes")]))
    # The first token of each spelling, and each token once.
    both = float(expected[WORDS.index("two")] + expected[WORDS.index("one")])
    assert tokens.probability_of(["two word", "two", " two", "one"]) == pytest.approx(both)
    other = Request("b", "text", (ImageIn(BLUE), Text("Is it red ?")), settings=settings)
    again, changed = contender.first_tokens([request, other])
    assert torch.equal(again.probabilities, tokens.probabilities)
    assert not torch.equal(changed.probabilities, tokens.probabilities)  # it sees the picture


def test_it_judges_and_is_recorded_by_its_weights(folder, tmp_path):
    judge = open_judge(f"transformers:{folder}", "cpu", "auto")
    assert isinstance(judge, ContenderJudge)
    queries = [Query("a#1", RED, "Is it red ?", ("yes", "Yes", " yes", " Yes")), Query("a#2", RED, "Is it red ?")]
    found = ask_all(judge, queries)
    contender = load_image_text_model(str(folder), "cpu")
    settings = contender.settings("text", {})
    (tokens,) = contender.first_tokens([Request("a", "text", (ImageIn(RED), Text("Is it red ?")), settings=settings)])
    assert found["a#1"].probability == pytest.approx(tokens.probability_of(["yes", "Yes"]))
    assert isinstance(found["a#2"].text, str) and len(judge.record()["revision"]) == 12
    assert judge.record()["name"] == folder.name


def test_mistakes_are_said(folder, tmp_path):
    contender = load_image_text_model(str(folder), "cpu")
    with pytest.raises(ValueError, match="it writes, and cannot be asked for image"):
        contender.settings("image", {})
    with pytest.raises(ValueError, match=r"there is no setting 'beams' of text\. Known: max_new_tokens, temperature"):
        contender.settings("text", {"beams": 3})
    with pytest.raises(FileNotFoundError, match=r"transformers:.* cannot be loaded as an image-text-to-text model"):
        load_image_text_model(str(tmp_path), "cpu")
