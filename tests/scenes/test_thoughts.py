import re

import numpy as np
import pytest

from diptych.scenes.compose import composition
from diptych.scenes.edits import EDIT_KINDS, edit
from diptych.scenes.layouts import layout_text, parse_layout
from diptych.scenes.questions import DIRECTIONS, TRAINING_QUESTION_KINDS, Question, question
from diptych.scenes.rules import RELATIONS
from diptych.scenes.sample import sample_scene
from diptych.scenes.thoughts import NOTHING, composition_thought, edit_thought, question_thought


def looked_at(parts: list[str], phrases: list[str], plain: str) -> list[list[list[str]]]:
    """For every phrase the words of the objects that are marked where it is looked for: square, size, colour, shape.

    Every phrase must be told before its reading, and every reading must be the whole picture.
    """
    assert parts[0::2] == phrases
    groups = []
    for reading in parts[1::2]:
        assert re.sub(r" 1 [a-h]\d(?=,)", "", reading) == plain
        entries = [entry.split(" ") for entry in reading.split(", ")[:-1]]
        assert all(len(words) == 4 or words[4:] == ["1", words[0]] for words in entries)
        groups.append([words[:4] for words in entries if len(words) > 4])
    return groups


def answer_from(text: str, words: list[list[list[str]]], choices: tuple[str, ...]) -> str:
    """The answer to a question from the objects that its phrases mean."""
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


def check_comparison(asked: Question, words: list[list[list[str]]], beside: list[str]) -> None:
    """What follows two readings: the objects, the word that is asked, and what holds, the asked one with a mark."""
    if len(words) < 2:
        assert beside == []
        return
    if [len(group) for group in words] == [1, 1]:
        pair, *beside = beside
        assert pair == ", ".join(" ".join(group[0]) for group in words)
    *word, told = beside
    facts = told.split(", ")
    assert len(facts) == len(set(facts)) <= 5
    if asked.text.startswith("Where is"):
        assert word == [] and " 1" not in told
        assert [DIRECTIONS[fact] for fact in facts if fact in RELATIONS] == [asked.answer]
        return
    (word,) = word
    assert f" {word}" in asked.text and [fact for fact in facts if word in fact] in ([], [f"{word} 1"])
    holds = f"{word} 1" in facts
    if asked.text.startswith("Which is"):
        assert asked.answer == asked.about[0 if holds else 1].phrase
    else:
        assert asked.answer == ("yes" if holds else "no")
    if word == "more":
        assert facts[:2] == [str(len(group)) for group in words]


def relation_from(text: str, words: list[list[list[str]]]) -> str | None:
    """The answer to a question about a relation from the squares, where these leave no doubt."""
    (column, row), (other_column, other_row) = ((ord(o[0][0][0]), int(o[0][0][1])) for o in words)
    across, down = column - other_column, row - other_row
    holds = {"left of": across < 0, "right of": across > 0, "above": down < 0, "below": down > 0}
    clear = {"left of": across, "right of": across, "above": down, "below": down}
    for relation in RELATIONS:
        if f" {relation} the " in text and abs(clear[relation]) > 2 * abs(across + down - clear[relation]):
            return "yes" if holds[relation] else "no"
    return None


@pytest.mark.parametrize("kind", TRAINING_QUESTION_KINDS)
def test_a_question_is_answered_by_the_objects_that_its_phrases_mean(kind: str) -> None:
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(300):
        scene = sample_scene(rng)
        try:
            asked = question(scene, rng, kind)
        except ValueError:
            continue  # the scene allows no such question
        phrases = [mention.phrase for mention in asked.about]
        places = [asked.text.find(phrase) for phrase in phrases]
        assert min(places) > 0 and places == sorted(places)
        parts = question_thought(scene, asked).split("; ")
        thought, beside = parts[: 2 * len(phrases)], parts[2 * len(phrases) :]
        words = looked_at(thought, phrases, layout_text(scene))
        check_comparison(asked, words, beside)
        if kind == "place":
            assert len(words[0]) == 1
        elif kind == "relation":
            assert [len(group) for group in words] == [1, 1]
            answer = relation_from(asked.text, words)
            assert answer in (None, asked.answer), (asked, thought)
            checked += answer is not None
        else:
            assert answer_from(asked.text, words, asked.choices) == asked.answer, (asked, thought)
            checked += 1
    assert checked > 20 or kind == "place"


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
            *seen, new, target = edit_thought(way).split("; ")
            phrases = [mention.phrase for mention in way.about]
            assert all(f"the {phrase}" in way.instruction for phrase in phrases)
            named = looked_at(seen, phrases, layout_text(way.source)) if phrases else []
            assert phrases or seen == [layout_text(way.source)]
            assert all(len(group) == 1 for group in named)
            before, after = layout_text(way.source).split(", "), target.split(", ")
            assert sorted(after) == sorted(layout_text(way.target).split(", "))
            for at, told in enumerate(new.split(", ") if new != NOTHING else []):
                assert told in after and (told not in before or way.kind in ("move", "swap"))
                if way.kind != "add":  # what is new differs in one word from what was named
                    assert sum(a != b for a, b in zip(named[at][0], told.split(" "), strict=True)) <= 1
            if way.kind == "remove":
                assert new == NOTHING and len(after) == len(before) - 1
                assert [entry for entry in before if entry in after] == after
            elif way.kind == "add":
                assert after[:-2] == before[:-1] and after[-1] == before[-1] and after[-2] == new
            else:
                changed = sum(a != b for a, b in zip(before, after, strict=True))
                assert changed <= (2 if way.kind == "swap" else 1)
    assert found > 50


def test_a_composition_is_what_every_reference_shows_and_what_is_made_of_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        made = composition(rng)
        *seen, then = composition_thought(made).split("; ")
        assert seen == [layout_text(scene) for scene in made.references]
        told = parse_layout(then)
        assert told is not None and [item.type for item in told.objects] == [item.type for item in made.target.objects]
