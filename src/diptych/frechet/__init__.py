"""Fréchet distances between feature distributions: moments, the exact distance, its gradient, and its neighbours.

torch and numpy only; every module can be imported alone. ``Moments.update`` -> ``Moments.save`` -> ``frechet_distance``
for scores; ``estimators`` -> ``loss.FDLoss`` for training (FD-loss). Beside them: ``fd_infinity``, ``kid``, ``cmmd``,
``precision_recall``, ``density_coverage`` and ``inception_score``, each on features or probabilities that are given.
"""

from diptych.frechet.distance import frechet_distance
from diptych.frechet.moments import Moments

__all__ = ["Moments", "frechet_distance"]
