import json
import pickle
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from diptych.data.example import ImageIn, ImageOut, Text, load_pixels
from diptych.data.sources.protocol import Source, SourceConfig
from diptych.data.sources.scenes import DESCRIBE_PROMPTS, SCENE_TASKS, ScenesSource, scene_key
from diptych.scenes.layouts import parse_layout
from diptych.scenes.parse import parse
from diptych.scenes.program import detections_of
from diptych.scenes.rules import evaluate_metadata
from diptych.scenes.scene import Scene
from diptych.scenes.split import NOVEL_TYPES, allowed_in_training, in_split

FORMS = {
    "text_to_image": [Text, ImageOut],
    "image_to_text": [ImageIn, Text, Text],
    "question_answering": [ImageIn, Text, Text],
    "image_edit": [ImageIn, Text, ImageOut],
    "interleaved": [Text, ImageOut, Text, ImageOut, Text, Text],
}


def images_of(example):
    return [part.image for part in example.parts if not isinstance(part, Text)]


def types_in(scene):
    return Counter((item.shape, item.color, item.size) for item in scene.objects)


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_examples_have_the_form_of_their_task(task):
    config = ScenesSource(task=task, num_scenes=30)
    source = config.build()
    assert isinstance(source, Source)
    assert isinstance(config, SourceConfig)
    assert len(source) == 30
    names = set()
    for index in range(30):
        example = source.example(index, 0)
        kinds = [type(part) for part in example.parts]
        if task == "multi_reference":
            assert kinds in ([ImageIn] * n + [Text, ImageOut] for n in (2, 3))
        else:
            assert kinds == FORMS[task]
        is_target = [part.is_target for part in example.parts]
        assert is_target[-1]
        assert all(part.role == "assistant" for part in example.parts if part.is_target)
        assert all(part.role == "user" for part in example.parts if not part.is_target)
        json.dumps(example.metadata)
        names.add(example.key)
    assert len(names) == 30


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_pictures_show_the_scenes_of_the_metadata(task):
    source = ScenesSource(task=task, seed=3).build()
    for index in range(4):
        example = source.example(index, 0)
        images = images_of(example)
        scenes = [example.metadata[name] for name in ("source",) if name in example.metadata]
        scenes += [*example.metadata.get("references", []), example.metadata["scene"]]
        assert len(images) == len(scenes)
        for image, data in zip(images, scenes, strict=True):
            scene = Scene.from_dict(data)
            pixels = load_pixels(image)
            assert pixels.shape == (64, 64, 3)
            found = parse(pixels).scene
            assert types_in(found) == types_in(scene)
            assert found.background == scene.background
            assert image.key == scene_key(scene, 64)


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_words_change_with_the_epoch_and_scenes_do_not(task):
    source = ScenesSource(task=task, num_scenes=20, edits_per_scene=2).build()
    epochs = [[source.example(i, epoch) for i in range(20)] for epoch in range(6)]
    texts = [[[p.text for p in e.parts if isinstance(p, Text)] for e in examples] for examples in epochs]
    keys = [{image.key for e in examples for image in images_of(e)} for examples in epochs]
    if task == "multi_reference":
        assert all(t == texts[0] for t in texts)
    else:
        assert all(t != texts[0] for t in texts[1:4])
    if task == "image_edit":
        assert texts[4:6] == texts[:2]  # two edits, forwards and backwards, then again
    if task in ("image_edit", "interleaved"):
        assert len(set.union(*keys)) <= 20 * 3  # the scene and two edits of it
        assert keys[0] == keys[1]  # the same pictures, forwards and backwards
    else:
        assert all(k == keys[0] for k in keys)


def test_the_same_index_and_epoch_give_the_same_example_in_another_process_too():
    source = ScenesSource(task="question_answering", seed=5).build()
    copied = pickle.loads(pickle.dumps(source))
    for index in (0, 7, 99_999):
        first, second = source.example(index, 2), copied.example(index, 2)
        assert [p.text for p in first.parts[1:]] == [p.text for p in second.parts[1:]]
        assert first.metadata == second.metadata
        read = pickle.loads(pickle.dumps(first))
        assert np.array_equal(load_pixels(read.parts[0].image), load_pixels(second.parts[0].image))


def test_tasks_of_one_seed_share_their_pictures():
    config = ScenesSource(seed=1)
    keys = [
        [images_of(replace(config, task=task).build().example(i, 0))[0].key for i in range(10)]
        for task in ("text_to_image", "image_to_text", "question_answering")
    ]
    assert keys[0] == keys[1] == keys[2]
    assert keys[0] != [images_of(replace(config, seed=2).build().example(i, 0))[0].key for i in range(10)]


def test_keys_tell_size_scene_and_background_apart():
    example = ScenesSource().build().example(0, 0)
    scene = Scene.from_dict(example.metadata["scene"])
    background = next(b for b in ("white", "black") if b != scene.background)
    keys = {
        scene_key(scene, 64),
        scene_key(scene, 32),
        scene_key(Scene(scene.objects, background), 64),
        scene_key(Scene((), scene.background), 64),
    }
    assert len(keys) == 4
    assert load_pixels(images_of(ScenesSource(image_size=32).build().example(0, 0))[0]).shape == (32, 32, 3)


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_splits_hold_for_every_picture_of_an_example(task):
    training = ScenesSource(task=task, num_scenes=60).build()
    held_out = ScenesSource(task=task, num_scenes=20, split="test").build()
    novel = ScenesSource(task=task, num_scenes=20, split="novel").build()
    names = [f"{color} {shape}" for shape, color in NOVEL_TYPES]
    for index in range(60):
        example = training.example(index, index % 4)
        data = [example.metadata["scene"], *example.metadata.get("references", [])]
        data += [example.metadata["source"]] if "source" in example.metadata else []
        assert all(allowed_in_training(Scene.from_dict(item)) for item in data)
        assert not any(name in part.text for part in example.parts if isinstance(part, Text) for name in names)
    for index in range(20):
        if task != "multi_reference":  # its split is about all references together: tests/scenes/test_compose.py
            assert in_split(held_out.scene(index), "test")
            assert in_split(novel.scene(index), "novel")


def test_programs_accept_their_scene():
    for task in ("text_to_image", "image_edit", "multi_reference"):
        source = ScenesSource(task=task, seed=4).build()
        for index in range(20):
            metadata = source.example(index, 0).metadata
            assert evaluate_metadata(metadata["program"], detections_of(Scene.from_dict(metadata["scene"])))


def test_both_directions_of_edits_are_in_every_epoch():
    source = ScenesSource(task="image_edit", num_scenes=40).build()
    for epoch in (0, 1):
        is_backward = [source.edit(i, epoch).inverse is None for i in range(40)]
        assert sum(is_backward) == 20
    for index in range(10):
        there, back = source.edit(index, 0), source.edit(index, 1)
        assert (there.source, there.target) == (back.target, back.source)


def test_wrong_fields_name_their_limits():
    for fields, message in (
        ({"num_scenes": 0}, "ScenesSource.num_scenes must be at least 1, got 0"),
        ({"max_objects": 7}, "ScenesSource.max_objects must be 1 to 6, got 7"),
        ({"max_objects": 1, "split": "test"}, "ScenesSource.max_objects must be 2 to 6, got 1"),
        ({"min_objects": 3, "max_objects": 2}, "ScenesSource.min_objects must be 1 to 2, got 3"),
        ({"image_size": 4}, "ScenesSource.image_size must be 8 to 4096, got 4"),
        ({"seed": -1}, "ScenesSource.seed must be at least 0, got -1"),
        ({"edits_per_scene": 0}, "ScenesSource.edits_per_scene must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            ScenesSource(**fields)
    with pytest.raises((ValueError, TypeCheckError), match="task"):
        ScenesSource(task="juggle")
    with pytest.raises(IndexError, match="ScenesSource has 10 examples, got index 10"):
        ScenesSource(num_scenes=10).build().example(10, 0)


def test_kinds_of_questions_can_be_chosen():
    config = ScenesSource(task="question_answering", num_scenes=30, questions_per_image=4, max_objects=1)
    chosen = replace(config, question_kinds=("existence", "relation")).build()
    kinds = [q["kind"] for i in range(30) for q in chosen.example(i, 0).metadata["questions"]]
    assert set(kinds) == {"existence"}  # one object has no relation
    mixed = replace(config, question_kinds=("existence", "existence", "color")).build()
    kinds = [q["kind"] for i in range(30) for q in mixed.example(i, 0).metadata["questions"]]
    assert 60 <= kinds.count("existence") <= 100
    assert kinds.count("existence") + kinds.count("color") == 120
    with pytest.raises(ValueError, match=r"question_kinds must be among existence, color, .*, got \('weight',\)"):
        ScenesSource(question_kinds=("weight",))
    with pytest.raises(ValueError, match=r"question_kinds must be among"):
        ScenesSource(question_kinds=())


def test_kinds_of_edits_can_be_chosen():
    chosen = ScenesSource(task="image_edit", num_scenes=30, edit_kinds=("recolor", "swap"), max_objects=2).build()
    made = [chosen.edit(index, epoch) for index in range(30) for epoch in (0, 1)]
    assert {one.kind for one in made} == {"recolor", "swap"}
    assert all(len(one.source.objects) == 2 for one in made if one.kind == "swap")
    with pytest.raises(ValueError, match=r"edit_kinds must be among add, remove, .*, got \('paint',\)"):
        ScenesSource(edit_kinds=("paint",))


def test_scenes_have_as_many_objects_as_asked_for():
    source = ScenesSource(num_scenes=30, min_objects=2, max_objects=3, caption_style="placed").build()
    assert {len(source.scene(index).objects) for index in range(30)} == {2, 3}
    assert {source.example(index).metadata["kind"] for index in range(30)} == {"placed"}
    told = replace(source.config, task="image_to_text").build().example(0)
    assert told.parts[1].text == DESCRIBE_PROMPTS["placed"]


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_a_thought_is_the_layout_of_what_is_drawn_or_asked_about(task):
    plain = ScenesSource(task=task, num_scenes=12, questions_per_image=2, caption_style="short")
    silent, thinking = plain.build(), replace(plain, thinks=True).build()
    for index in range(12):
        example = thinking.example(index)
        thoughts = [at for at, part in enumerate(example.parts) if isinstance(part, Text) and part.is_thought]
        spoken = tuple(part for at, part in enumerate(example.parts) if at not in thoughts)
        assert [getattr(p, "text", type(p)) for p in spoken] == [
            getattr(p, "text", type(p)) for p in silent.example(index).parts
        ]
        assert len(thoughts) == {"interleaved": 3, "question_answering": 2}.get(task, 1)
        shown = example.metadata["scene"]
        last = example.parts[thoughts[0 if task == "question_answering" else -1]]
        assert last.is_target and example.parts[thoughts[-1] + 1].role == "assistant"
        steps = last.text.split("; ")
        told = parse_layout(steps[1] if task in ("question_answering", "interleaved") else steps[-1])
        assert told is not None and told.background == shown["background"]
        assert sorted(item.type for item in told.objects) == sorted((o["shape"], o["color"]) for o in shown["objects"])


@pytest.mark.parametrize("task", ["question_answering", "image_edit", "multi_reference"])
def test_in_words_pictures_are_told_and_none_is_shown(task):
    seeing = ScenesSource(task=task, num_scenes=12, questions_per_image=2, thinks=True)
    source, shown = replace(seeing, in_words=True).build(), seeing.build()
    for index in range(12):
        parts, same = source.example(index).parts, shown.example(index).parts
        assert all(isinstance(part, Text) for part in parts)
        pictures = [part for part in same if isinstance(part, ImageIn)]
        told = parts[: len(pictures)]
        steps = parts[len(pictures) + 1].text.split("; ")
        readings = [re.sub(r" 1 [a-h]\d(?=,)", "", step) for step in steps if parse_layout(step) is not None]
        for part, reading in zip(told, readings[: len(told)], strict=True):
            assert part == Text(reading + "; ")
        assert parts[len(pictures) :] == tuple(part for part in same if isinstance(part, Text))
    assert not list(source.images())
    with pytest.raises(ValueError, match=r"in_words needs thinks=True and one of the tasks .*, got thinks=False and"):
        replace(seeing, in_words=True, thinks=False)
    with pytest.raises(ValueError, match=r"in_words needs .*, got thinks=True and 'text_to_image'"):
        replace(seeing, in_words=True, task="text_to_image")


@pytest.mark.parametrize("task", ["question_answering", "interleaved"])
def test_answers_can_weigh_more_than_the_thoughts_before_them(task):
    example = ScenesSource(task=task, thinks=True, answer_weight=5.0).build().example(3)
    learnt = [part for part in example.parts if isinstance(part, Text) and part.is_target]
    assert {part.weight for part in learnt if part.is_thought} == {1.0}
    assert [part.weight for part in learnt if not part.is_thought] == [5.0]
    with pytest.raises(ValueError, match=r"answer_weight must be at least 0, got -1"):
        ScenesSource(answer_weight=-1.0)


def test_several_questions_are_turns_about_one_picture():
    source = ScenesSource(task="question_answering", num_scenes=5, questions_per_image=3).build()
    for index in range(5):
        example = source.example(index, 0)
        kinds = [type(part).__name__ for part in example.parts]
        assert kinds == ["ImageIn", *["Text"] * 6]
        assert [part.is_target for part in example.parts] == [False, *[False, True] * 3]
        asked = example.metadata["questions"]
        assert [item["answer"] for item in asked] == [part.text for part in example.parts[2::2]]
    with pytest.raises(ValueError, match="questions_per_image must be at least 1"):
        ScenesSource(questions_per_image=0)
