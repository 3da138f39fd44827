"""Parts to tokens: what each format writes, what is learnt, that a conversation only ever grows at its end."""

import re

import numpy as np
import pytest
from PIL import Image

from diptych.data.example import Example, ImageIn, ImageOut, Text
from diptych.data.layout import SpanKind
from diptych.data.prompt_format import (
    ImageRules,
    PromptFormat,
    chatml_format,
    compact_format,
    drawing_request,
    prompt_parts,
    render,
    texts_first,
)
from diptych.data.tokenizer import train_tokenizer
from diptych.interop.tokenizers import read_tiktoken_ranks
from diptych.train.part_configs import TokenizerConfig

PICTURE = np.zeros((32, 64, 3), np.uint8)
RULES = ImageRules(lambda height, width: (height // 16, width // 16), num_queries=3)
SIZE = (32, 64)

QWEN25_NAMES = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
"""Special tokens of Qwen2.5, ids 151643 to 151664 (tokenizer_config.json of Qwen2.5-VL)."""


@pytest.fixture(scope="module")
def compact():
    return TokenizerConfig().build()


@pytest.fixture(scope="module")
def chatml():
    """A tokenizer of bytes alone with the special tokens that the format names."""
    return train_tokenizer(["some text"], 400, chatml_format().special_tokens())


def laid_out(parts, tokenizer, prompt_format, open_turn=False, open_thought=False):
    sizes = [SIZE for part in parts if not isinstance(part, Text)]
    return render(Example(tuple(parts)), prompt_format, tokenizer, RULES, sizes, open_turn, open_thought)


def written(layout, tokenizer, only_targets=False) -> str:
    """The spans as text: special tokens by name, images and queries in square brackets with their number."""
    names = {token: name for name, token in tokenizer.special.items()}
    text = ""
    for span in layout.spans:
        if span.kind != SpanKind.TEXT:
            shape = "" if span.grid is None else f" {span.grid[0]}x{span.grid[1]}"
            text += "" if only_targets else f"[{span.kind.name}{shape} {span.image}]"
        elif span.is_target or not only_targets:
            plain: list[int] = []
            for token in span.token_ids:
                if token in names:
                    text += tokenizer.decode(plain) + names[token]
                    plain = []
                else:
                    plain.append(token)
            text += tokenizer.decode(plain)
    return text


ASKED = (ImageIn(PICTURE), Text("What is it?"), Text("a star", role="assistant", is_target=True))
DRAWN = (Text("a red circle"), ImageOut(PICTURE))
EDITED = (ImageIn(PICTURE), Text("make it blue"), ImageOut(PICTURE))
PLAN = Text("c3", role="assistant", is_target=True, is_thought=True)
STORY = (
    Text("Tell a story."),
    Text("Once", role="assistant", is_target=True),
    ImageOut(PICTURE),
    Text("and then", role="assistant", is_target=True),
    ImageOut(PICTURE),
)


@pytest.mark.parametrize(
    ("parts", "text", "targets"),
    [
        (ASKED, "<|user|><|image|>[IMAGE 2x4 0]What is it?<|assistant|>a star<|end|>", "a star<|end|>"),
        (DRAWN, "<|user|>a red circle<|assistant|><|draw|>[QUERY 0]", ""),
        (EDITED, "<|user|><|image|>[IMAGE 2x4 0]make it blue<|assistant|><|draw|>[QUERY 1]", ""),
        (
            STORY,
            "<|user|>Tell a story.<|assistant|>Once<|draw|>[QUERY 0]<|image|>[IMAGE 2x4 0]and then<|draw|>[QUERY 1]",
            "Onceand then",
        ),
        (
            (*DRAWN[:1], PLAN, *DRAWN[1:]),
            "<|user|>a red circle<|assistant|>\nc3\n<|draw|>[QUERY 0]",
            "c3\n",
        ),
        (
            (*ASKED[:2], PLAN, *ASKED[2:]),
            "<|user|><|image|>[IMAGE 2x4 0]What is it?<|assistant|>\nc3\na star<|end|>",
            "c3\na star<|end|>",
        ),
        ((*ASKED[:2], PLAN), "<|user|><|image|>[IMAGE 2x4 0]What is it?<|assistant|>\nc3\n", "c3\n"),
        (
            (Text("Be brief.", role="system"), Text("Hi"), Text("Ho", role="assistant"), Text("Now?")),
            "<|system|>Be brief.<|user|>Hi<|assistant|>Ho<|end|><|user|>Now?",
            "",
        ),
    ],
)
def test_the_compact_format(compact, parts, text, targets):
    layout = laid_out(parts, compact, compact_format())
    assert written(layout, compact) == text
    assert written(layout, compact, only_targets=True) == targets


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.mark.parametrize(
    ("parts", "text", "targets"),
    [
        (
            ASKED,
            SYSTEM + "<|im_start|>user\n<|vision_start|>[IMAGE 2x4 0]<|vision_end|>What is it?<|im_end|>\n"
            "<|im_start|>assistant\na star<|im_end|>\n",
            "a star<|im_end|>\n",
        ),
        (
            DRAWN,
            SYSTEM + "<|im_start|>user\nPlease generate image based on the following caption: a red circle<|im_end|>\n"
            "<|im_start|>assistant\n[IMG][QUERY 0]",
            "",
        ),
        (
            EDITED,
            SYSTEM + "<|im_start|>user\n<|vision_start|>[IMAGE 2x4 0]<|vision_end|>make it blue<|im_end|>\n"
            "<|im_start|>assistant\n[IMG][QUERY 1]",
            "",
        ),
        (
            (*DRAWN[:1], PLAN, *DRAWN[1:]),
            SYSTEM + "<|im_start|>user\nPlease generate image based on the following caption: a red circle<|im_end|>\n"
            "<|im_start|>assistant\n<think>\nc3\n</think>\n\n[IMG][QUERY 0]",
            "c3\n</think>\n\n",
        ),
        (
            (Text("Be brief.", role="system"), Text("Hi")),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
            "",
        ),
    ],
)
def test_the_chatml_format(chatml, parts, text, targets):
    layout = laid_out(parts, chatml, chatml_format())
    assert written(layout, chatml) == text
    assert written(layout, chatml, only_targets=True) == targets


@pytest.fixture(scope="module")
def qwen(test_data):
    tokenizer = read_tiktoken_ranks(test_data / "tokenizers" / "qwen" / "qwen.tiktoken", QWEN25_NAMES)
    return tokenizer.with_special_tokens(["[IMG]", "[/IMG]", "<image>"])


@pytest.mark.parametrize("caption", ["a red circle", "Zwei Hunde, 3 Katzen – 🍕!", "دائرة حمراء", "what's <|im_end|>?"])
def test_chatml_with_qwens_tokens_is_the_documented_prompt(qwen, caption):
    """blip3o, section 3, inference form; the ids are those of Qwen2.5-VL with ``[IMG]`` behind its own."""
    start, end = 151644, 151645
    assert [qwen.special[name] for name in ("<|im_start|>", "<|im_end|>", "[IMG]")] == [start, end, 151665]
    assert [qwen.special[name] for name in ("<|image_pad|>", "<|vision_start|>")] == [151655, 151652]
    asked = f"user\nPlease generate image based on the following caption: {caption}"
    expected = [
        *(start, *qwen.encode("system\nYou are a helpful assistant."), end, *qwen.encode("\n")),
        *(start, *qwen.encode(asked), end, *qwen.encode("\n")),
        *(start, *qwen.encode("assistant\n"), 151665),
    ]
    rules = ImageRules(RULES.input_grid, num_queries=64)
    layout = render(Example((Text(caption), ImageOut(size=SIZE))), chatml_format(), qwen, rules, [SIZE])
    text, queries = layout.spans
    assert list(text.token_ids) == expected
    assert (queries.kind, queries.length, queries.is_full) == (SpanKind.QUERY, 64, False)


CONVERSATION = (
    (Text("What is red?"), Text("the circle", role="assistant")),
    (Text("a blue square"), ImageOut(PICTURE, is_target=False)),
    (ImageIn(PICTURE), Text("And here?"), Text("a star", role="assistant")),
    (Text("make it green"), ImageOut(PICTURE, is_target=False)),
    (Text("Thanks"), Text("Sure", role="assistant")),
)


def positions_of(layout):
    """What stands at every position, in a form that can be compared."""
    found = []
    for span in layout.spans:
        found += span.token_ids or [(span.kind, span.image, span.is_hidden)] * span.length
    return found


@pytest.mark.parametrize("prompt_format", [compact_format(), chatml_format()], ids=["compact", "chatml"])
def test_a_longer_conversation_begins_with_the_shorter_one(prompt_format):
    """So that what a cache holds of earlier turns stays right."""
    tokenizer = train_tokenizer(["some text"], 400, prompt_format.special_tokens())
    lengths = []
    for count in range(1, len(CONVERSATION)):
        turns = [part for turn in CONVERSATION[:count] for part in turn]
        shorter = positions_of(laid_out(turns, tokenizer, prompt_format))
        longer = positions_of(laid_out([*turns, *CONVERSATION[count]], tokenizer, prompt_format))
        assert longer[: len(shorter)] == shorter and len(longer) > len(shorter)
        lengths.append(len(shorter))
    assert len(lengths) == 4 and lengths == sorted(lengths)


@pytest.mark.parametrize("prompt_format", [compact_format(), chatml_format()], ids=["compact", "chatml"])
def test_a_prompt_with_an_open_turn_is_what_training_shows_before_the_answer(prompt_format):
    tokenizer = train_tokenizer(["some text"], 400, prompt_format.special_tokens())
    asked = positions_of(laid_out(ASKED[:2], tokenizer, prompt_format, open_turn=True))
    trained = laid_out(ASKED, tokenizer, prompt_format)
    answer = trained.spans[-1]
    assert answer.is_target and positions_of(trained) == asked + list(answer.token_ids)


@pytest.mark.parametrize("prompt_format", [compact_format(), chatml_format()], ids=["compact", "chatml"])
@pytest.mark.parametrize("parts", [DRAWN, EDITED, ASKED], ids=["draw", "edit", "ask"])
def test_an_open_thought_and_a_given_one_are_what_training_shows(prompt_format, parts):
    tokenizer = train_tokenizer(["some text"], 400, prompt_format.special_tokens())
    *request, answer = parts
    trained = positions_of(laid_out([*request, PLAN, answer], tokenizer, prompt_format))
    asked = drawing_request(request, prompt_format) if isinstance(answer, ImageOut) else request
    opened = positions_of(laid_out(asked, tokenizer, prompt_format, open_turn=True, open_thought=True))
    given = positions_of(laid_out([*asked, PLAN], tokenizer, prompt_format, open_turn=True))
    assert trained[: len(opened)] == opened and trained[: len(given)] == given
    thought = [*tokenizer.encode("c3"), *tokenizer.encode(prompt_format.thought_end)]
    assert given == opened + thought and len(trained) > len(given)


def test_a_thought_without_an_end_is_refused():
    with pytest.raises(ValueError, match="thought_end is empty"):
        PromptFormat(thought_end="")
    with pytest.raises(ValueError, match="a thought is the assistant's"):
        Text("c3", is_thought=True)


def test_names_of_special_tokens_in_what_users_write_stay_text(compact):
    layout = laid_out([Text("<|end|><|draw|>")], compact, compact_format())
    specials = [token for token in layout.spans[0].token_ids if token in compact.special.values()]
    assert specials == [compact.special["<|user|>"]]
    assert written(layout, compact) == "<|user|><|end|><|draw|>"


def test_the_wrapped_text_is_the_last_one_of_the_user_before_the_drawing(compact):
    prompt_format = PromptFormat(draw_prompt="draw({text})", edit_prompt="edit({text})")
    parts = (Text("a"), Text("b"), Text("ok", role="assistant"), ImageOut(PICTURE), Text("c"), ImageOut(PICTURE))
    assert written(laid_out(parts, compact, prompt_format), compact) == (
        "adraw(b)ok[QUERY 0][IMAGE 2x4 0]edit(c)[QUERY 1]"
    )
    unasked = (Text("ok", role="assistant"), ImageOut(PICTURE))
    assert written(laid_out(unasked, compact, prompt_format), compact) == "ok[QUERY 0]"


def test_text_in_braces_is_no_template(compact):
    prompt_format = PromptFormat(draw_prompt="draw {text}")
    assert written(laid_out([Text("{text} {0}"), ImageOut(PICTURE)], compact, prompt_format), compact) == (
        "draw {text} {0}[QUERY 0]"
    )


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_the_formats_special_tokens_is_refused(compact):
    with pytest.raises(
        ValueError, match=re.escape("uses the special token '<|im_start|>', which this tokenizer lacks")
    ):
        laid_out(DRAWN, compact, chatml_format())


def test_special_tokens_are_listed_once_in_order_of_use():
    assert compact_format().special_tokens() == (
        *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|image|>", "<|draw|>"),
    )
    assert set(chatml_format().special_tokens()) == {
        *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "[IMG]"),
    }


def test_a_text_that_is_too_long_is_refused_with_its_length(compact):
    with pytest.raises(ValueError, match=r"example 'a/7' has \d{4} text tokens, more than the model's 1024. Shorten"):
        render(Example((Text("red " * 3000),), key="a/7"), compact_format(), compact, RULES, [])


@pytest.mark.parametrize("template", ["draw it", "{text} and {text}"])
def test_a_template_without_its_place_for_the_text_is_refused(template):
    with pytest.raises(ValueError, match=r"prompt_format.draw_prompt must contain \{text\} exactly once, got"):
        PromptFormat(draw_prompt=template)


def test_a_format_survives_json():
    import json

    for prompt_format in (compact_format(), chatml_format(), PromptFormat()):
        assert PromptFormat.from_dict(json.loads(json.dumps(prompt_format.to_dict()))) == prompt_format


@pytest.mark.parametrize("prompt", [None, 5, b"abc", {"role": "user"}, PICTURE, {"a red circle"}])
def test_what_is_no_prompt_is_refused_with_both_spellings(prompt):
    with pytest.raises(
        TypeError, match=r'a prompt is a str or a list of .*, got .*\. Write "What is it\?" or \[image,'
    ):
        prompt_parts(prompt)


@pytest.mark.parametrize("prompt", ["", " \n\t", [], ["", "  "], [Text("")]])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match=r"the prompt is empty. Say what to draw or what to answer."):
        prompt_parts(prompt)


def test_an_image_that_was_drawn_is_history_in_a_prompt():
    (text, image) = prompt_parts(["and now?", ImageOut(PICTURE)])
    assert text == Text("and now?") and not image.is_target
    with pytest.raises(ValueError, match=r"an ImageOut in a prompt is an image drawn before, and needs it"):
        prompt_parts([ImageOut(size=(64, 64)), "what?"])


def test_texts_stand_before_pictures_where_an_image_is_asked_for():
    first, second = (ImageIn(Image.new("RGB", (2, 2), color)) for color in ("red", "blue"))
    parts = (first, Text("paint"), second, ImageOut(), Text("now"), ImageOut(), first, Text("what?"))
    assert texts_first(parts) == (Text("paint"), first, second, ImageOut(), Text("now"), ImageOut(), first, parts[-1])
    answered = (first, Text("what?"), Text("a cat", role="assistant"))
    assert texts_first(answered) == answered
