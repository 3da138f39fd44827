"""The program behind a scene or a prompt, in GenEval's schema: what a correct picture must show.

Two kinds of class names are in use. A *type* name ("red circle") is one class, so a program can ask for it as GenEval
asks for "bench"; where an attribute is asked for (categories ``colors`` and ``color_attr``), the class is the shape and
``color`` a field of the clause, as in GenEval. ``detections_of`` reports every object under both names.
"""

from diptych.scenes.phrases import counted, group_by_type, join_list, type_name
from diptych.scenes.relations import box_of
from diptych.scenes.rules import Clause, Detection, Metadata
from diptych.scenes.scene import ObjectType, Scene


def detections_of(scene: Scene, confidence: float = 1.0) -> list[Detection]:
    """What a perfect detector finds in a picture of the scene: each object as its shape and as its type."""
    found: list[Detection] = []
    for item in scene.objects:
        box = box_of(item)
        found.append(Detection(item.shape, confidence, box, item.color))
        found.append(Detection(type_name(item.type), confidence, box, item.color))
    return found


def scene_program(scene: Scene, tag: str = "scene") -> Metadata:
    """Exactly these objects by type: as many of each as in the scene, and no more of them."""
    groups = group_by_type(scene)
    prompt = join_list([counted(number, type_name(kind)) for kind, number in groups.items()]) if groups else "nothing"
    include: list[Clause] = [{"class": type_name(kind), "count": number} for kind, number in groups.items()]
    exclude: list[Clause] = [{"class": type_name(kind), "count": number + 1} for kind, number in groups.items()]
    return {"tag": tag, "prompt": prompt, "include": include, "exclude": exclude}


def types_program(types: list[ObjectType], tag: str, prompt: str) -> Metadata:
    """At least one object of each of some types."""
    return {"tag": tag, "prompt": prompt, "include": [{"class": type_name(kind), "count": 1} for kind in types]}


def relation_program(first: ObjectType, relation: str, second: ObjectType, tag: str, prompt: str) -> Metadata:
    """The first type stands in a relation to the second; the target clause comes first, as in GenEval."""
    include: list[Clause] = [
        {"class": type_name(second), "count": 1},
        {"class": type_name(first), "count": 1, "position": [relation, 0]},
    ]
    return {"tag": tag, "prompt": prompt, "include": include}
