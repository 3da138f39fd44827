import re

import numpy as np
import pytest

from diptych.scenes.compose import composition
from diptych.scenes.edits import EDIT_KINDS, edit
from diptych.scenes.layouts import layout_text, parse_layout, reading_text, square_of
from diptych.scenes.questions import TRAINING_QUESTION_KINDS, question
from diptych.scenes.relations import relations_of
from diptych.scenes.rules import RELATIONS
from diptych.scenes.sample import sample_scene
from diptych.scenes.thoughts import NOTHING, composition_thought, edit_thought, question_thought


def mentions_of(text: str) -> list[tuple[str, list[str]]]:
    """Every phrase and the objects behind it, as a layout tells them."""
    told = []
    for mention in text.split("; "):
        phrase, first, rest = re.match(rf"(.*?) ({NOTHING}|[a-h][1-8] [^,]*)(.*)", mention).groups()
        told.append((phrase, [] if first == NOTHING else [first, *rest.split(", ")[1:]]))
    return told


def answer_from(text: str, groups: list[list[str]], choices: tuple[str, ...], scene) -> str:
    """The answer to a question from the objects that its phrases mean, by their words (relations by the scene)."""
    words = [[entry.split(" ") for entry in group] for group in groups]
    if text.startswith("Is there"):
        return "yes" if words[0] else "no"
    if text.startswith("How many"):
        return str(len(words[0]))
    if text.startswith("Are there more"):
        return "yes" if len(words[0]) > len(words[1]) else "no"
    for attribute, at in (("size", 1), ("color", 2), ("shape", 3)):
        if text.startswith(f"What {attribute}"):
            return words[0][0][at]
        if text.endswith(f"the same {attribute}?"):
            return "yes" if words[0][0][at] == words[1][0][at] else "no"
    sizes = [["small", "medium", "large"].index(group[0][1]) for group in words]
    if text.startswith("Which is"):
        return choices[int((sizes[0] < sizes[1]) == ("larger" in text))]
    return "yes" if (sizes[0] > sizes[1]) == ("larger" in text) else "no"


@pytest.mark.parametrize("kind", TRAINING_QUESTION_KINDS)
def test_a_question_is_answered_by_the_objects_that_it_speaks_of(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = sample_scene(rng)
        try:
            asked = question(scene, rng, kind)
        except ValueError:
            continue  # the scene allows no such question
        seen, then = question_thought(scene, asked)
        assert seen == reading_text(scene) and question_thought(scene, asked, is_seen=True) == ("", then)
        told = mentions_of(then)
        groups = [objects for _, objects in told]
        places = [asked.text.find(phrase) for phrase, _ in told]
        assert min(places) > 0 and places == sorted(places)
        assert all(f"{entry} {entry[:2]}" in seen.split(", ") for group in groups for entry in group)
        if kind not in ("relation", "place"):
            assert answer_from(asked.text, groups, asked.choices, scene) == asked.answer, (asked, then)
        elif kind == "relation":
            item, other = (scene.objects[mention.objects[0]] for mention in asked.about)
            assert [square_of(item), square_of(other)] == [group[0].split(" ")[0] for group in groups]
            named = [relation for relation in RELATIONS if f" {relation} the " in asked.text]
            if named:
                assert asked.answer == ("yes" if named[0] in relations_of(item, other) else "no")


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_an_edit_changes_what_it_is_about_and_copies_the_rest_in_its_order(kind: str) -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        try:
            made = edit(sample_scene(rng), rng, kind)
        except ValueError:
            continue  # no room, or one object only
        found += 1
        for way in (made, made.inverse):
            seen, then = edit_thought(way)
            *named, new, target = then.split("; ")
            assert seen == reading_text(way.source) and len(named) == len(way.about)
            assert all(f"the {phrase}" in way.instruction for text in named for phrase, _ in mentions_of(text))
            before, after = layout_text(way.source).split(", "), target.split(", ")
            assert sorted(after) == sorted(layout_text(way.target).split(", "))
            assert [entry for entry in after if entry in new.split(", ")] or new == NOTHING
            assert set(after) - set(before) <= set(new.split(", "))
            if way.kind == "remove":
                assert [entry for entry in before if entry in after] == after and len(after) == len(before) - 1
            elif way.kind == "add":
                assert after[:-2] == before[:-1] and after[-1] == before[-1]
            else:
                changed = sum(a != b for a, b in zip(before, after, strict=True))
                assert changed <= (2 if way.kind == "swap" else 1)
    assert found > 50


def test_a_composition_is_what_every_reference_shows_and_what_is_made_of_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        made = composition(rng)
        seen, then = composition_thought(made)
        assert seen.split("; ") == [reading_text(scene) for scene in made.references]
        told = parse_layout(then)
        assert told is not None and [item.type for item in told.objects] == [item.type for item in made.target.objects]
