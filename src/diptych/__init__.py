"""diptych: one library for unified multimodal models, which both understand images and make them.

Importing this package is cheap: everything that needs torch is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from diptych.data.example import Example, ImageIn, ImageOut, Text
    from diptych.loading import load
    from diptych.unified import UnifiedModel

_HOMES = {
    "Example": "diptych.data.example",
    "ImageIn": "diptych.data.example",
    "ImageOut": "diptych.data.example",
    "Text": "diptych.data.example",
    "UnifiedModel": "diptych.unified",
    "load": "diptych.loading",
}

__all__ = ["Example", "ImageIn", "ImageOut", "Text", "UnifiedModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'diptych' has no attribute {name!r}; it offers {', '.join(sorted(_HOMES))}.")


def __dir__() -> list[str]:
    return sorted(__all__)
