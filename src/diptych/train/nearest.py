"""Which known names an unknown one may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A sentence to end an error message with: the known names closest to ``name``, or all if none is close.

    Names that begin with what was given come first, from three letters on: ``--num`` is ``--num-images``.
    """
    names = list(known)
    longer = [one for one in names if one.startswith(name)] if len(name.lstrip("-")) >= 3 else []
    others = (one for one in get_close_matches(name, names, n=count, cutoff=0.5) if one not in longer)
    close = [*longer, *others][:count]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {', '.join(names)}." if names else "There are none."
