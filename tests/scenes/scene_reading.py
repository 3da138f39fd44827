"""An independent reader of the language of scenes, for tests: texts are taken apart by regular expressions and every
statement in them is checked by brute force against the scene. Shares no code with the writers but ``object_box``."""

import re

import numpy as np

from diptych.scenes.draw import object_box
from diptych.scenes.scene import Scene, SceneObject

COLOR = "red|orange|yellow|green|blue|purple|pink|brown"
SHAPE = "circle|square|triangle|diamond|star|cross|heart|ring"
SIZE = "small|medium|large"
NUMBERS = {"a": 1, "an": 1, "no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
PLACE_WORDS = {
    "in the top left": (0, 0),
    "at the top": (0, 1),
    "in the top right": (0, 2),
    "on the left": (1, 0),
    "in the center": (1, 1),
    "on the right": (1, 2),
    "in the bottom left": (2, 0),
    "at the bottom": (2, 1),
    "in the bottom right": (2, 2),
}
PLACE = "|".join(PLACE_WORDS)
RELATION_WORDS = {
    "to the left of": "left",
    "on the left of": "left",
    "left of": "left",
    "to the right of": "right",
    "on the right of": "right",
    "right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
RELATION = "|".join(RELATION_WORDS)

NOUN = re.compile(
    rf"^(?:(?P<number>a|an|the|one|two|three|four|five|six) )?(?:(?P<size>{SIZE}) )?"
    rf"(?:(?P<color>{COLOR})(?:-colored)? )?"
    rf"(?P<shape>{SHAPE}|object)(?:es|s)?(?: in (?P<in_color>{COLOR}))?(?: (?P<place>{PLACE}))?$"
)


def matching(phrase: str, scene: Scene) -> tuple[int, list[SceneObject]]:
    """The number that a noun phrase names (1 without one), and all objects of the scene that fit it."""
    found = NOUN.match(phrase)
    assert found is not None, phrase
    part = found.groupdict()
    color = part["color"] or part["in_color"]
    fitting = [
        item
        for item in scene.objects
        if (part["shape"] in ("object", item.shape))
        and color in (None, item.color)
        and part["size"] in (None, item.size)
        and (part["place"] is None or third(item) == PLACE_WORDS[part["place"]])
    ]
    number = 1 if part["number"] in (None, "the") else NUMBERS[part["number"]]
    return number, fitting


def third(item: SceneObject) -> tuple[int, int]:
    """(row, column) of the third of the picture."""
    return int(item.y * 3), int(item.x * 3)


def stands(item: SceneObject, words: str, other: SceneObject) -> bool:
    """GenEval's position rule, written again from its formula with numpy, in pixels of a 512 px picture."""
    boxes = [np.array(object_box(o)).reshape(2, 2) * 512 for o in (item, other)]
    centers = [box.mean(axis=0) for box in boxes]
    extents = [box[1] - box[0] for box in boxes]
    offset = centers[0] - centers[1]
    shortened = np.sign(offset) * np.clip(np.abs(offset) - 0.1 * (extents[0] + extents[1]), 0, None)
    if (np.abs(shortened) < 1e-3).all():
        return False
    dx, dy = shortened / np.sqrt((offset**2).sum())
    relation = RELATION_WORDS[words]
    return bool({"left": dx < -0.5, "right": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}[relation])


def groups_stand(first: str, words: str, second: str, scene: Scene) -> bool:
    """Both groups are there in full and the relation holds between all pairs."""
    (n, some), (m, others) = matching(first, scene), matching(second, scene)
    return len(some) == n and len(others) == m and all(stands(a, words, b) for a in some for b in others)


def caption_is_true(text: str, scene: Scene) -> bool:
    """Whether every statement of a caption of any style holds, and short ones name all objects."""
    return _long_is_true(text, scene) if text.endswith(".") else _phrase_is_true(text, scene)


def _phrase_is_true(text: str, scene: Scene) -> bool:
    if text == f"an empty {scene.background} background":
        return not scene.objects
    body = re.sub(
        r"^(a photo of|a picture of|an image of|a drawing of|a photo showing|a picture that shows|an image with"
        r"|there is|there are) ",
        "",
        text,
    )
    background = re.search(r" on a (\w+) background$", body)
    if background:
        if background[1] != scene.background:
            return False
        body = body[: background.start()]
    for pattern in (
        rf"^(?P<r>{RELATION}) (?P<b>.+) there (?:is|are) (?P<a>.+)$",
        rf"^(?P<b>.+?) with (?P<a>.+?) (?P<r>{RELATION}) (?:it|them)$",
        rf"^(?P<a>.+?) (?P<r>{RELATION}) (?P<b>.+)$",
    ):
        found = re.match(pattern, body)
        if found:
            named = matching(found["a"], scene)[0] + matching(found["b"], scene)[0]
            return named == len(scene.objects) and groups_stand(found["a"], found["r"], found["b"], scene)
    total = 0
    for phrase in re.split(r", | and ", body):
        number, fitting = matching(phrase, scene)
        # "two red circles" are all red circles; "a small red circle" is the only one that fits
        if len(fitting) != number:
            return False
        total += number
    return total == len(scene.objects)


def _long_is_true(text: str, scene: Scene) -> bool:
    described: list[str] = []
    for sentence in text[:-1].split(". "):
        if found := re.match(r"^A picture with (\w+) objects? on a (\w+) background$", sentence):
            good = NUMBERS[found[1]] == len(scene.objects) and found[2] == scene.background
        elif found := re.match(r"^The background is (\w+)$", sentence):
            good = found[1] == scene.background
        elif found := re.match(r"^There (?:is|are) (\w+) objects?$", sentence):
            good = NUMBERS[found[1]] == len(scene.objects)
        elif found := re.match(rf"^The (.+) is ({RELATION}) the (.+)$", sentence):
            (_, some), (_, others) = matching(found[1], scene), matching(found[3], scene)
            good = len(some) == len(others) == 1 and stands(some[0], found[2], others[0])
        elif found := re.match(rf"^(?:There is )?(An?|an?) (.+?)(?: is)? ({PLACE})$", sentence):
            described.append(f"{found[2]} {found[3]}")
            good = len(matching(described[-1], scene)[1]) >= described.count(described[-1])
        elif found := re.match(rf"^({PLACE}) is an? (.+)$", sentence[0].lower() + sentence[1:]):
            described.append(f"{found[2]} {found[1]}")
            good = len(matching(described[-1], scene)[1]) >= described.count(described[-1])
        else:
            raise AssertionError(f"cannot read {sentence!r}")
        if not good:
            return False
    return len(described) == len(scene.objects)


def answer_by_brute_force(text: str, scene: Scene) -> str:
    """Solves a question from its words."""

    def only(phrase: str) -> SceneObject:
        fitting = matching(phrase, scene)[1]
        assert len(fitting) == 1, (phrase, scene)
        return fitting[0]

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    ranks = {"small": 0, "medium": 1, "large": 2}
    if found := re.match(r"^Is there an? (.+)\?$", text):
        return yes(bool(matching(found[1], scene)[1]))
    if found := re.match(r"^What (color|shape|size) is the (.+)\?$", text):
        return getattr(only(found[2]), found[1])
    if found := re.match(r"^How many (.+) are there\?$", text):
        return str(len(matching(found[1], scene)[1]))
    if found := re.match(r"^Where is the (.+) relative to the (.+)\?$", text):
        item, other = only(found[1]), only(found[2])
        true = {r for words, r in RELATION_WORDS.items() if stands(item, words, other)}
        assert len(true) == 1
        return true.pop()
    if found := re.match(r"^Is the (.+) (larger|smaller) than the (.+)\?$", text):
        first, second = ranks[only(found[1]).size], ranks[only(found[3]).size]
        return yes(first > second if found[2] == "larger" else first < second)
    if found := re.match(rf"^Is the (.+?) ({RELATION}) the (.+)\?$", text):
        return yes(stands(only(found[1]), found[2], only(found[3])))
    if found := re.match(r"^Which is (larger|smaller), the (.+) or the (.+)\?$", text):
        first, second = ranks[only(found[2]).size], ranks[only(found[3]).size]
        assert first != second
        return found[2] if (first > second) == (found[1] == "larger") else found[3]
    if found := re.match(r"^Are there more (.+) than (.+)\?$", text):
        return yes(len(matching(found[1], scene)[1]) > len(matching(found[2], scene)[1]))
    if found := re.match(r"^Are the (.+) and the (.+) the same (color|shape|size)\?$", text):
        return yes(getattr(only(found[1]), found[3]) == getattr(only(found[2]), found[3]))
    raise AssertionError(f"cannot read {text!r}")
