"""Readers of data, one file a format; each has a config class with ``build()`` that returns a ``protocol.Source``."""
