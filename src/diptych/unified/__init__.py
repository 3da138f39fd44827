"""The unified model and its face: what load, train, evaluate and serve all speak to."""

from diptych.flow.solvers import OnStep
from diptych.unified.model import DrawSettings, GridTable, ImageHead, ImagePolicy, UnifiedModel

__all__ = ["DrawSettings", "GridTable", "ImageHead", "ImagePolicy", "OnStep", "UnifiedModel"]
