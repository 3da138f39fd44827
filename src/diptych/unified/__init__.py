"""The unified model and its face: what load, train, evaluate and serve all speak to."""

from diptych.flow.solvers import OnStep
from diptych.unified.drawing import ImageHead
from diptych.unified.model import UnifiedModel
from diptych.unified.settings import DrawSettings, GridTable, ImagePolicy

__all__ = ["DrawSettings", "GridTable", "ImageHead", "ImagePolicy", "OnStep", "UnifiedModel"]
