"""Readers of data, one file a format; each has a config class with ``build()`` that returns a ``protocol.Source``."""

from diptych.data.sources.conversation import ConversationSource
from diptych.data.sources.folder import FolderSource
from diptych.data.sources.huggingface import HuggingFaceSource
from diptych.data.sources.scenes import ScenesSource
from diptych.data.sources.webdataset import WebDatasetSource

__all__ = ["ConversationSource", "FolderSource", "HuggingFaceSource", "ScenesSource", "WebDatasetSource"]
