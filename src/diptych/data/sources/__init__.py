"""Readers of data, one file a format; each has a config class with ``build()`` that returns a ``protocol.Source``.

The config classes can be imported from here; their files are read only then.
"""

from importlib import import_module
from typing import Any

_CONFIGS = {
    "ConversationSource": "conversation",
    "FolderSource": "folder",
    "HuggingFaceSource": "huggingface",
    "ScenesSource": "scenes",
    "WebDatasetSource": "webdataset",
}


def __getattr__(name: str) -> Any:
    if name not in _CONFIGS:
        raise AttributeError(f"{__name__} has no {name!r}; it has {', '.join(_CONFIGS)}.")
    return getattr(import_module(f"{__name__}.{_CONFIGS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_CONFIGS])
