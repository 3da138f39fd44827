"""lmms-eval and this harness: models and tasks of each in the other, without a fork of either.

Nothing here imports ``lmms_eval`` before it is needed; it comes with ``pip install 'diptych[lmms]'``.
"""

from typing import Any


def manifests() -> list[Any]:
    """What the entry point ``lmms_eval.models`` gives to lmms-eval: the model ``diptych``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="diptych", simple_class_path="diptych.evals.lmms.model.DiptychModel")]


def needs_lmms(what: str) -> ValueError:
    """The error where lmms-eval is not installed."""
    return ValueError(f"{what} needs lmms-eval: pip install 'diptych[lmms]'.")
