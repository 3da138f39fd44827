"""What makes a Fréchet distance less than it looks, told from what is known about both sides."""

from collections.abc import Mapping, Sequence

import numpy as np

from diptych.frechet.extraction import ExtractedSet

WISE_ROWS_PER_DIM = 10
LOSSY = frozenset({"JPEG"})
"""Formats that always change pixels; WebP may or may not."""


def set_warnings(name: str, extracted: ExtractedSet) -> list[str]:
    """Of one set, whatever it is compared with."""
    num = len(extracted.features)
    found = []
    if extracted.faults:
        first, fault = extracted.faults[0]
        found.append(
            f"{name}: {len(extracted.faults)} pictures cannot be read and are left out (first {first}: {fault})."
        )
    unique = len(np.unique(extracted.digests))
    if unique == 1:
        found.append(f"{name}: all {num} pictures are the same, so the covariance is zero.")
    elif unique < num:
        found.append(f"{name}: {num - unique} of {num} pictures are duplicates of others.")
    if len(extracted.sizes) > 1:
        found.append(
            f"{name}: mixed resolutions, {_shares(_size_names(extracted.sizes))}; all are stretched to one size."
        )
    if LOSSY & set(extracted.formats) and len(extracted.formats) > 1:
        found.append(f"{name}: mixed formats, {_shares(extracted.formats)}; JPEG leaves traces that features see.")
    for note, count in extracted.notes.items():
        shown = "all" if count == num else str(count)
        found.append(f"{name}: {shown} {note} pictures, {_HANDLING[note]}.")
    return found


def pair_warnings(names: tuple[str, str], sides: tuple[ExtractedSet, ExtractedSet]) -> list[str]:
    """Of two sets that are compared."""
    a, b = sides
    found = []
    shared = len(np.intersect1d(a.digests, b.digests))
    if shared:
        found.append(f"{shared} pictures are in both {names[0]} and {names[1]}.")
    if len(a.sizes) == 1 and len(b.sizes) == 1 and set(a.sizes) != set(b.sizes):
        first, second = (_shares(_size_names(side.sizes)) for side in sides)
        found.append(f"{names[0]} is of {first} pixels and {names[1]} of {second}: resizing differs.")
    if (set(a.formats) <= LOSSY) != (set(b.formats) <= LOSSY):
        found.append(
            f"{names[0]} is {_shares(a.formats)} and {names[1]} {_shares(b.formats)}: JPEG against lossless moves the "
            "distance by itself."
        )
    if set(a.pixel_kinds) != set(b.pixel_kinds):
        first, second = (_shares(side.pixel_kinds) for side in sides)
        found.append(f"{names[0]} is {first} and {names[1]} {second}: rounding to 8 bits moves small distances.")
    return found


def count_warnings(name: str, count: int | None, dim: int) -> list[str]:
    """Whether there are enough rows for so many dimensions."""
    if count is None:
        return [f"{name}: the file of statistics does not say how many images it is of, or of which network."]
    if count <= dim:
        return [
            f"{name}: {count} pictures for {dim} dimensions, so the covariance is singular and the distance far too "
            "high; compare it only with distances of as many pictures."
        ]
    if count < WISE_ROWS_PER_DIM * dim:
        return [
            f"{name}: {count} pictures for {dim} dimensions: the distance is biased upwards, 10 a dimension are wise."
        ]
    return []


_HANDLING = {
    "16-bit": "scaled to 8 bits",
    "CMYK": "converted to RGB without their colour profile",
    "animated": "of which the first frame is taken",
    "transparent": "laid on white",
}


def _size_names(sizes: Mapping[tuple[int, int], int]) -> dict[str, int]:
    return {f"{width}x{height}": count for (height, width), count in sizes.items()}


def _shares(counts: Mapping[str, int], most: int = 3) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    ordered: Sequence[tuple[str, int]] = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{count} {name}" for name, count in ordered[:most])
    return shown + (f" and {len(ordered) - most} other kinds" if len(ordered) > most else "")
