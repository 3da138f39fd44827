"""The unified model and its face: what load, train, evaluate and serve all speak to."""

from diptych.unified.model import DrawSettings, GridTable, ImageHead, ImagePolicy, OnStep, UnifiedModel

__all__ = ["DrawSettings", "GridTable", "ImageHead", "ImagePolicy", "OnStep", "UnifiedModel"]
