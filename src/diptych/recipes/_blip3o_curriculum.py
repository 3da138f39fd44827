"""The curricula of ``blip3o:small``, ``blip3o:think`` and ``blip3o:demo``: what is shown, and in which order."""

from collections.abc import Mapping
from dataclasses import replace

from diptych.data.sources.scenes import ScenesSource
from diptych.scenes.questions import TRAINING_QUESTION_KINDS
from diptych.train.recipe import OptimizerConfig, Stage


def small_data() -> dict[str, ScenesSource]:
    """One skill a source, and at last all of them."""
    scenes = ScenesSource(num_scenes=1_000_000)
    draw = replace(scenes, task="text_to_image", caption_style="short")
    ask = replace(scenes, task="question_answering", questions_per_image=6)
    edit = replace(scenes, task="image_edit")
    return {
        "ask_one": replace(ask, max_objects=1, question_kinds=("existence",)),
        "ask_two": replace(ask, max_objects=2, question_kinds=("existence", "color", "shape", "size", "count")),
        "ask_place": replace(ask, max_objects=3, question_kinds=("place",), questions_per_image=2),
        "ask_relation": replace(ask, min_objects=2, max_objects=3, question_kinds=("relation",), questions_per_image=1),
        "ask_few": replace(ask, max_objects=4, question_kinds=TRAINING_QUESTION_KINDS),
        "ask": ask,
        "describe": replace(scenes, task="image_to_text"),
        "draw_one": replace(draw, max_objects=1, caption_style="placed"),
        "draw_two": replace(draw, min_objects=2, max_objects=2, caption_style="placed"),
        "draw": replace(draw, max_objects=4),
        "edit_kept": replace(edit, max_objects=2, edit_kinds=("recolor", "reshape", "resize")),
        "edit_few": replace(edit, max_objects=2),
        "edit": edit,
        "compose": replace(scenes, task="multi_reference"),
    }


def small_stages() -> dict[str, Stage]:
    """Existence, names, places, relations; one object drawn, two, pictures of which one thing changes; everything."""
    optimizer = OptimizerConfig(
        name="muon", lr=1e-3, warmup_steps=50, schedule="wsd", decay_fraction=0.2, ema_decay=0.99
    )
    match = Stage(
        trainable=("connector", "backbone"),
        mix={"ask_one": 1.0},
        objectives={"text": 1.0},
        num_steps=250,
        batch_size=16,
        optimizer=optimizer,
    )
    joint = Stage(
        trainable=("connector", "backbone", "image_head"),
        mix={"draw_one": 0.7, "ask_few": 0.3},
        objectives={"text": 1.0, "flow": 1.0},
        num_steps=400,
        batch_size=32,
        optimizer=replace(optimizer, decay_fraction=0.1),
    )
    return {
        "match": match,
        "name": replace(match, mix={"ask_two": 1.0}, num_steps=300),
        "place": replace(match, mix={"ask_place": 1.0}, num_steps=250, batch_size=32),
        "relate": replace(
            match, mix={"ask_relation": 0.65, "ask_place": 0.15, "ask_two": 0.2}, num_steps=900, batch_size=32
        ),
        "compare": replace(match, mix={"ask_relation": 0.6, "ask_few": 0.4}, num_steps=900, batch_size=32),
        "draw": joint,
        "arrange": replace(
            joint, mix={"draw_two": 0.45, "draw": 0.3, "ask_few": 0.13, "ask_relation": 0.12}, num_steps=700
        ),
        "copy": replace(
            joint, mix={"edit_kept": 0.6, "draw": 0.18, "ask_few": 0.12, "ask_relation": 0.1}, num_steps=600
        ),
        "all": replace(
            joint,
            mix={
                "draw": 0.2,
                "draw_two": 0.17,
                "ask": 0.2,
                "ask_relation": 0.12,
                "describe": 0.01,
                "edit_few": 0.15,
                "edit": 0.12,
                "compose": 0.03,
            },
            num_steps=6500,
            optimizer=replace(optimizer, decay_fraction=0.5, ema_decay=0.998),
        ),
    }


def think_data() -> dict[str, ScenesSource]:
    """Pictures to read, conclusions in words alone, and what is drawn from a thought."""
    scenes = ScenesSource(num_scenes=1_000_000)
    tell = replace(scenes, task="image_to_text", caption_style="layout")
    ask = replace(scenes, task="question_answering", thinks=True, answer_weight=5.0)
    hard = ("relation", "relation", "comparison", "comparison", "shape", "existence")
    told = replace(ask, in_words=True, questions_per_image=2)
    draw = replace(scenes, task="text_to_image", caption_style="short", max_objects=4, thinks=True)
    edit = replace(scenes, task="image_edit", thinks=True)
    compose = replace(scenes, task="multi_reference", thinks=True)
    return {
        "tell": tell,
        "describe": replace(scenes, task="image_to_text", thinks=True),
        "ask": ask,
        "ask_hard": replace(ask, question_kinds=hard),
        "ask_at_once": replace(ask, questions_per_image=6, thinks=False),
        "ask_words": told,
        "ask_words_hard": replace(told, question_kinds=hard),
        "draw_one": replace(draw, max_objects=1),
        "draw_two": replace(draw, min_objects=2, max_objects=2),
        "draw": draw,
        "draw_at_once": replace(draw, thinks=False),
        "edit_kept": replace(edit, max_objects=3, edit_kinds=("recolor", "reshape", "resize")),
        "edit_few": replace(edit, max_objects=3),
        "edit": edit,
        "edit_words_few": replace(edit, in_words=True, max_objects=3),
        "edit_words": replace(edit, in_words=True),
        "compose": compose,
        "compose_words": replace(compose, in_words=True),
    }


def think_stages(small: Mapping[str, Stage]) -> dict[str, Stage]:
    """Reading, concluding, drawing from thoughts; ``small`` are the stages of ``blip3o:small``, which they change."""
    understand = replace(small["compare"], mix={"tell": 0.7, "ask": 0.3})
    joint, everything = small["arrange"], small["all"]
    kept = {"tell": 0.15, "ask": 0.12, "ask_words": 0.08, "ask_hard": 0.05}
    return {
        "read": replace(understand, num_steps=500),
        "conclude": replace(
            understand,
            mix={"ask_words": 0.3, "ask_words_hard": 0.15, "edit_words": 0.2, "edit_words_few": 0.1}
            | {"tell": 0.12, "ask": 0.1, "compose_words": 0.03},
            num_steps=1000,
            batch_size=64,
        ),
        "draw": replace(joint, mix={"draw_one": 0.6, **kept}, num_steps=250),
        "two": replace(joint, mix={"draw_two": 0.5, "draw_one": 0.1, **kept}, num_steps=600),
        "arrange": replace(joint, mix={"draw_two": 0.4, "draw": 0.2, **kept}, num_steps=600),
        "copy": replace(
            joint,
            mix={"edit_kept": 0.22, "edit_few": 0.2, "edit": 0.12, "draw": 0.1, "tell": 0.12, "ask": 0.12}
            | {"ask_words": 0.06, "ask_hard": 0.06},
            optimizer=replace(joint.optimizer, weight_decay=0.1),
            num_steps=1000,
        ),
        "all": replace(
            everything,
            mix={
                "draw": 0.06,
                "draw_two": 0.01,
                "draw_at_once": 0.01,
                "tell": 0.12,
                "describe": 0.01,
                "ask": 0.12,
                "ask_hard": 0.08,
                "ask_at_once": 0.02,
                "ask_words": 0.08,
                "ask_words_hard": 0.07,
                "edit_few": 0.04,
                "edit": 0.2,
                "edit_words": 0.1,
                "edit_words_few": 0.03,
                "compose": 0.03,
                "compose_words": 0.02,
            },
            optimizer=replace(everything.optimizer, weight_decay=0.1),
            num_steps=9000,
        ),
    }


def demo_data() -> dict[str, ScenesSource]:
    """Pictures to read, questions that are answered at once, and captions with the layout that is drawn."""
    small, think = small_data(), think_data()
    asked = {name: replace(small[name], answer_weight=2.0) for name in ("ask_two", "ask_few", "ask")}
    return {
        "tell_two": replace(think["tell"], max_objects=2),
        "tell_few": replace(think["tell"], max_objects=4),
        "tell": think["tell"],
        "ask_one": small["ask_one"],
        **asked,
        **{name: think[name] for name in ("draw_one", "draw_two", "draw")},
    }


def demo_stages(small: Mapping[str, Stage]) -> dict[str, Stage]:
    """Reading, existence, names, all questions, drawing; ``small`` are the stages of ``blip3o:small``."""
    read = replace(small["relate"], optimizer=replace(small["relate"].optimizer, decay_fraction=0.1))
    last = small["arrange"]
    return {
        "read_two": replace(read, mix={"tell_two": 1.0}, num_steps=150),
        "read": replace(read, mix={"tell_few": 0.4, "tell": 0.6}, num_steps=300),
        "match": replace(small["match"], num_steps=200),
        "name": replace(small["name"], num_steps=300),
        "compare": replace(read, mix={"ask_few": 0.5, "ask": 0.4, "tell": 0.1}, num_steps=900, batch_size=16),
        "draw": replace(small["draw"], mix={"draw_one": 0.6, "ask_few": 0.3, "tell_few": 0.1}, num_steps=120),
        "arrange": replace(
            last,
            mix={"draw_two": 0.29, "draw": 0.24, "ask_few": 0.2, "ask": 0.23, "tell": 0.04},
            num_steps=920,
            optimizer=replace(last.optimizer, decay_fraction=0.5),
        ),
    }
