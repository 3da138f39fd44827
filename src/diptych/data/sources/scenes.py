"""The built-in world as a data source: pictures, captions, questions, edits and compositions, drawn on the fly.

What is to be seen depends only on (seed, index), so that pixels and encoder features can be cached over epochs; the
words (caption, question, which of the edits) change with the epoch; ``multi_reference`` is the same in every epoch.
Images are lazy and are drawn when they are read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np

from diptych.data.example import Example, ImageIn, ImageOut, LazyImage, Part, Text
from diptych.data.sources.protocol import BadRecord
from diptych.scenes.captions import CAPTION_STYLES, CaptionStyle, caption, pick_style
from diptych.scenes.compose import composition
from diptych.scenes.draw import draw
from diptych.scenes.edits import EDIT_KINDS, Edit, edit
from diptych.scenes.labels import cell_labels
from diptych.scenes.layouts import layout_text, reading_text
from diptych.scenes.program import scene_program
from diptych.scenes.questions import QUESTION_KINDS, TRAINING_QUESTION_KINDS, Question, question
from diptych.scenes.sample import MAX_OBJECTS
from diptych.scenes.scene import ObjectType, Scene
from diptych.scenes.split import SPLITS, Split, may_follow, split_scene, types_of_split
from diptych.scenes.thoughts import composition_thought, edit_thought, question_thought

SceneTask: TypeAlias = Literal[
    "text_to_image", "image_to_text", "question_answering", "image_edit", "multi_reference", "interleaved"
]
SCENE_TASKS: tuple[SceneTask, ...] = get_args(SceneTask)

DESCRIBE_PROMPTS = {
    "short": "Describe the image briefly.",
    "placed": "Say what is where.",
    "paraphrase": "Describe the image.",
    "long": "Describe the image in detail.",
    "layout": "Where are the objects?",
}
"""What is asked for each style of caption in ``image_to_text``."""

_TASKS_IN_WORDS: tuple[SceneTask, ...] = ("question_answering", "image_edit", "multi_reference")
"""Tasks in which pictures are looked at, and more is done than to describe them."""

Made = TypeVar("Made", Question, Edit)

_TRIES_FOR_NEW_QUESTION = 4

_DRAWING_VERSION = 1
"""Part of every image key; raised when the same scene is drawn differently."""

_SCENE_STREAM, _EDIT_STREAM, _COMPOSITION_STREAM, _WORDS_STREAM = range(4)
_SPLIT_CODES = {split: code for code, split in enumerate(SPLITS)}


@dataclass(frozen=True, kw_only=True)
class ScenesSource:
    """Examples of one task from the built-in world."""

    task: SceneTask = "text_to_image"
    """Which kind of example: what is given and what is to be learnt."""
    num_scenes: int = 100_000
    """Examples of an epoch. The first n scenes are the same for every number."""
    image_size: int = 64
    """Side of the pictures in pixels."""
    seed: int = 0
    """Decides the scenes; two tasks with one seed and split show the same scenes, so that features are shared."""
    split: Split = "train"
    """``train``, or one of the held-out splits ``test`` and ``novel``."""
    min_objects: int = 1
    """Objects of a scene at least, 1 to 6 (``multi_reference`` has its own numbers)."""
    max_objects: int = MAX_OBJECTS
    """Objects of a scene at most, 1 to 6 (``multi_reference`` has three or fewer anyway)."""
    caption_style: CaptionStyle = "mixed"
    """Words of captions: ``short`` is closest to the prompts of the benchmark, ``placed`` says where things are."""
    questions_per_image: int = 1
    """Questions of one ``question_answering`` example, as turns of a conversation about the same picture: the picture
    is read once for all of them."""
    question_kinds: tuple[str, ...] = QUESTION_KINDS
    """Kinds of questions that are asked, where the scene allows them; one named twice is asked twice as often."""
    edit_kinds: tuple[str, ...] = EDIT_KINDS
    """Kinds of edits that are asked for, where the scene allows them; used backwards, to add is to remove."""
    edits_per_scene: int = 2
    """Different edits of each scene over all epochs; each is also used backwards. More edits are more pictures."""
    thinks: bool = False
    """Before a picture is drawn or described, or a question about one is answered, a thought is written, which is
    learnt too: the layout of what is to be drawn (`diptych.scenes.layouts`), or what is seen and what follows from it
    (`diptych.scenes.thoughts`)."""
    in_words: bool = False
    """Pictures are told instead of shown, and none is drawn, so that answers, edits and compositions are learnt as
    steps from words to words, in a fraction of the time. Needs ``thinks``."""
    answer_weight: float = 1.0
    """Factor on the loss of answers to questions. Behind a layout of thirty tokens a *yes* is all that tells whether it
    was understood, and would be a thirtieth of the example's loss."""
    label_cells: int = 0
    """Cells along a side of the grid of labels that every picture carries (``diptych.scenes.labels``); 0 for none."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("task", self.task, SCENE_TASKS),
            ("split", self.split, SPLITS),
            ("caption_style", self.caption_style, CAPTION_STYLES),
        ):
            if value not in known:
                raise ValueError(f"ScenesSource.{name} must be one of {', '.join(known)}, got {value!r}.")
        for kinds_name, kinds, all_kinds in (
            ("question_kinds", self.question_kinds, TRAINING_QUESTION_KINDS),
            ("edit_kinds", self.edit_kinds, EDIT_KINDS),
        ):
            if not kinds or not set(kinds) <= set(all_kinds):
                raise ValueError(f"ScenesSource.{kinds_name} must be among {', '.join(all_kinds)}, got {kinds}.")
        if self.in_words and not (self.thinks and self.task in _TASKS_IN_WORDS):
            raise ValueError(
                f"ScenesSource.in_words needs thinks=True and one of the tasks {', '.join(_TASKS_IN_WORDS)}, got "
                f"thinks={self.thinks} and {self.task!r}."
            )
        least_objects = 2 if self.split == "test" else 1
        for name, number, low, high in (
            ("num_scenes", self.num_scenes, 1, None),
            ("answer_weight", self.answer_weight, 0, None),
            ("image_size", self.image_size, 8, 4096),
            ("seed", self.seed, 0, None),
            ("max_objects", self.max_objects, least_objects, MAX_OBJECTS),
            ("min_objects", self.min_objects, 1, self.max_objects),
            ("questions_per_image", self.questions_per_image, 1, None),
            ("edits_per_scene", self.edits_per_scene, 1, None),
            ("label_cells", self.label_cells, 0, None),
        ):
            if number < low or (high is not None and number > high):
                limits = f"at least {low}" if high is None else f"{low} to {high}"
                raise ValueError(f"ScenesSource.{name} must be {limits}, got {number}.")

    def build(self) -> "SceneExamples":
        """The source; nothing is drawn yet."""
        return SceneExamples(self)


class SceneExamples:
    """Random access to the examples of a ``ScenesSource``."""

    def __init__(self, config: ScenesSource) -> None:
        self.config = config
        self._makers: dict[str, Callable[[int, int], Example]] = {
            "text_to_image": self._text_to_image,
            "image_to_text": self._image_to_text,
            "question_answering": self._question_answering,
            "image_edit": self._image_edit,
            "multi_reference": self._multi_reference,
            "interleaved": self._interleaved,
        }

    def __len__(self) -> int:
        return self.config.num_scenes

    def example(self, index: int, epoch: int = 0) -> Example:
        """The example at ``index``, with the words of an epoch.

        Raises:
            IndexError: ``index`` is not in [0, len).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"ScenesSource has {len(self)} examples, got index {index}.")
        return self._makers[self.config.task](index, epoch)

    def scene(self, index: int) -> Scene:
        """The scene at ``index``, the same in every epoch and for every task but ``multi_reference``."""
        rng = self._generator(_SCENE_STREAM, index)
        config = self.config
        return split_scene(rng, config.split, min_objects=config.min_objects, max_objects=config.max_objects)

    def images(self) -> Iterator[LazyImage]:
        """Every picture that the examples of any epoch show, in a fixed order; some come several times."""
        for index in range(0 if self.config.in_words else len(self)):
            if self.config.task == "multi_reference":
                example = self.example(index, 0)
                yield from (part.image for part in example.parts if not isinstance(part, Text))  # type: ignore[misc]
                continue
            yield self._image(self.scene(index))
            if self.config.task in ("image_edit", "interleaved"):
                for turn in range(self.config.edits_per_scene):
                    try:
                        yield self._image(self.edit(index, 2 * turn).target)
                        yield self._image(self.edit(index, 2 * turn).source)
                    except BadRecord:
                        continue  # met again, counted and named by the stream

    def _generator(self, stream: int, index: int, turn: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, _SPLIT_CODES[self.config.split], stream, index, turn])

    def _words(self, index: int, epoch: int) -> np.random.Generator:
        return self._generator(_WORDS_STREAM + SCENE_TASKS.index(self.config.task), index, epoch)

    def _image(self, scene: Scene) -> LazyImage:
        return LazyImage(
            key=scene_key(scene, self.config.image_size),
            read=partial(draw, scene, self.config.image_size),
            labels=partial(cell_labels, scene, self.config.label_cells) if self.config.label_cells else None,
        )

    def _name(self, index: int) -> str:
        return f"scenes/{self.config.split}/{self.config.task}/{self.config.seed}/{index}"

    def _metadata(self, scene: Scene, **more: Any) -> dict[str, Any]:
        return {"task": self.config.task, "split": self.config.split, "scene": scene.to_dict(), **more}

    def _caption(self, scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
        """A caption and the style it is written in."""
        style = self.config.caption_style
        if style == "mixed":
            style = pick_style(rng)
        return caption(scene, rng, style), style

    def _text_to_image(self, index: int, epoch: int) -> Example:
        scene = self.scene(index)
        words, style = self._caption(scene, self._words(index, epoch))
        metadata = self._metadata(scene, kind=style, program=scene_program(scene))
        thought = self._thought(layout_text(scene, words))
        parts: tuple[Part, ...] = (Text(words), *thought, ImageOut(self._image(scene)))
        return Example(parts, self._name(index), metadata=metadata)

    def _thought(self, text: str) -> tuple[Text, ...]:
        """A thought, if there is to be one."""
        return (Text(text, role="assistant", is_target=True, is_thought=True),) if self.config.thinks else ()

    def _shown(self, *scenes: Scene) -> tuple[Part, ...]:
        """The pictures of scenes, or what is in them, in words."""
        if self.config.in_words:
            return tuple(Text(f"{layout_text(scene)}; ") for scene in scenes)
        return tuple(ImageIn(self._image(scene)) for scene in scenes)

    def _drawn(self, scene: Scene) -> tuple[Part, ...]:
        """The picture of a scene that is asked for; in words its layout is all of it."""
        return () if self.config.in_words else (ImageOut(self._image(scene)),)

    def _image_to_text(self, index: int, epoch: int) -> Example:
        scene = self.scene(index)
        words, style = self._caption(scene, self._words(index, epoch))
        parts: tuple[Part, ...] = (
            ImageIn(self._image(scene)),
            Text(DESCRIBE_PROMPTS[style]),
            *self._thought(reading_text(scene)),
            Text(words, role="assistant", is_target=True),
        )
        return Example(parts, self._name(index), metadata=self._metadata(scene, kind=style, answer=words))

    def _question_answering(self, index: int, epoch: int) -> Example:
        scene = self.scene(index)
        words, types = self._words(index, epoch), types_of_split(self.config.split)
        asked: list[Question] = []
        for _ in range(self.config.questions_per_image):
            asked.append(self._new_question(scene, words, types, asked))
        turns = [
            (
                Text(one.text),
                *self._thought(question_thought(scene, one)),
                Text(one.answer, role="assistant", is_target=True, weight=self.config.answer_weight),
            )
            for one in asked
        ]
        parts: tuple[Part, ...] = (*self._shown(scene), *(part for turn in turns for part in turn))
        first = asked[0]
        metadata = self._metadata(scene, kind=first.kind, answer=first.answer, choices=list(first.choices))
        if len(asked) > 1:
            metadata["questions"] = [{"question": q.text, "answer": q.answer, "kind": q.kind} for q in asked]
        return Example(parts, self._name(index), metadata=metadata)

    def _new_question(
        self, scene: Scene, words: np.random.Generator, types: Sequence[ObjectType], asked: Sequence[Question]
    ) -> Question:
        """One that was not asked yet, if a few tries find one: an answer that stands above teaches nothing."""
        known = {one.text for one in asked}
        for _ in range(_TRIES_FOR_NEW_QUESTION):
            found = self._question(scene, words, types)
            if found.text not in known:
                break
        return found

    def _question(self, scene: Scene, words: np.random.Generator, types: Sequence[ObjectType]) -> Question:
        return _first_possible(
            partial(question, scene, words, types=types), self.config.question_kinds, QUESTION_KINDS, words
        )

    def edit(self, index: int, epoch: int = 0) -> Edit:
        """The edit that an epoch shows of the scene at ``index``: one of a few, forwards or backwards."""
        # Epochs alternate; half of the scenes begin backwards, so that an epoch has both.
        turn, is_backward = divmod(epoch, 2)
        scene = self.scene(index)
        rng = self._generator(_EDIT_STREAM, index, turn % self.config.edits_per_scene)
        split = self.config.split
        make = partial(edit, scene, rng, allow=partial(may_follow, split=split), types=types_of_split(split))
        try:
            made = _first_possible(make, self.config.edit_kinds, EDIT_KINDS, rng)
        except ValueError as error:
            raise BadRecord("no edit found", self._name(index), str(error)) from error
        return made if made.inverse is None or (index + is_backward) % 2 == 0 else made.inverse

    def _image_edit(self, index: int, epoch: int) -> Example:
        made = self.edit(index, epoch)
        parts: tuple[Part, ...] = (
            *self._shown(made.source),
            Text(made.instruction),
            *self._thought(edit_thought(made)),
            *self._drawn(made.target),
        )
        metadata = self._metadata(
            made.target, kind=made.kind, source=made.source.to_dict(), program=scene_program(made.target)
        )
        return Example(parts, self._name(index), metadata=metadata)

    def _multi_reference(self, index: int, epoch: int) -> Example:
        made = composition(self._generator(_COMPOSITION_STREAM, index), split=self.config.split)
        parts: tuple[Part, ...] = (
            *self._shown(*made.references),
            Text(made.instruction),
            *self._thought(composition_thought(made)),
            *self._drawn(made.target),
        )
        references = [scene.to_dict() for scene in made.references]
        metadata = self._metadata(made.target, kind=made.kind, references=references, program=made.program)
        return Example(parts, self._name(index), metadata=metadata)

    def _interleaved(self, index: int, epoch: int) -> Example:
        """A conversation: a picture is asked for, then changed, then asked about."""
        made = self.edit(index, epoch)
        rng = self._words(index, epoch)
        words, _ = self._caption(made.source, rng)
        asked = question(made.target, rng, types=types_of_split(self.config.split))
        parts: tuple[Part, ...] = (
            Text(words),
            *self._thought(layout_text(made.source, words)),
            ImageOut(self._image(made.source)),
            Text(made.instruction),
            *self._thought(edit_thought(made)),
            ImageOut(self._image(made.target)),
            Text(asked.text),
            *self._thought(question_thought(made.target, asked)),
            Text(asked.answer, role="assistant", is_target=True, weight=self.config.answer_weight),
        )
        metadata = self._metadata(
            made.target, kind=made.kind, source=made.source.to_dict(), answer=asked.answer, question_kind=asked.kind
        )
        return Example(parts, self._name(index), metadata=metadata)


def _first_possible(
    make: Callable[..., Made], kinds: Sequence[str], all_kinds: Sequence[str], rng: np.random.Generator
) -> Made:
    """What is made of one of the kinds asked for, in random order; of any kind where the scene allows none of them.

    Raises:
        ValueError: the scene allows nothing at all.
    """
    if kinds != all_kinds:
        for place in rng.permutation(len(kinds)).tolist():
            with suppress(ValueError):
                return make(kind=kinds[place])
    return make()


def scene_key(scene: Scene, image_size: int) -> str:
    """The key of a drawn scene: equal for equal scenes and sizes, of whatever source."""
    digest = blake2b(f"{_DRAWING_VERSION}|{image_size}|{scene.background}".encode(), digest_size=16)
    for item in scene.objects:
        digest.update(f"|{item.shape},{item.color},{item.size},{item.x!r},{item.y!r}".encode())
    return f"scene-{digest.hexdigest()}"
