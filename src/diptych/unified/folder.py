"""The model folder: one JSON file, one folder of safetensors a part, the tokenizer, a page for people.

    diptych.json              format version, parts with their configurations, prompt format, licence, scores
    PART/model.safetensors    weights of a part (several files and an index above 4 GB)
    tokenizer/                the tokenizer's own files
    README.md                 the model card

Written whole or not at all; safetensors and JSON only.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych import __version__
from diptych.data.prompt_format import PromptFormat
from diptych.data.tokenizer import FastTokenizer
from diptych.models.part import build_part, part_kind
from diptych.unified.model import DrawSettings, ImagePolicy, UnifiedModel

FORMAT_VERSION = 1
MANIFEST = "diptych.json"
SHARD_BYTES = 4 * 1024**3
BUNDLED = Path(__file__).parent.parent / "assets" / "models"


def save_model(model: UnifiedModel, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes the model folder to ``path``, replacing an earlier one only when the new one is complete.

    Args:
        dtype: floating weights are stored in; by default as they are.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        parts: dict[str, Any] = {}
        for name, part in model.parts().items():
            config = {**part.config_dict(), "kind": part_kind(part)}  # type: ignore[operator]
            parts[name] = {"config": config, "files": _save_part(part, temporary / name, dtype)}
        manifest = {
            "format_version": FORMAT_VERSION,
            "diptych_version": __version__,
            "kind": "unified",
            "capabilities": list(model.capabilities),
            "parts": parts,
            "prompt_format": model.prompt_format.to_dict(),
            "tokenizer_fingerprint": model.tokenizer.fingerprint,
            "images": asdict(model.images),
            "draw": asdict(model.draw_settings),
            "card": model.card,
        }
        model.tokenizer.save(temporary / "tokenizer")
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(model_card(model, manifest), encoding="utf-8")
        _replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_model(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> UnifiedModel:
    """The model in a folder.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: a file is damaged, of a newer format, or belongs to another model.
    """
    folder = resolve(path)
    manifest = read_manifest(folder)
    parts = {name: _load_part(folder, name, entry) for name, entry in manifest["parts"].items()}
    tokenizer = FastTokenizer.load(folder / "tokenizer")
    if tokenizer.fingerprint != manifest["tokenizer_fingerprint"]:
        raise ValueError(
            f"{folder / 'tokenizer'} is not the tokenizer this model was trained with (fingerprint "
            f"{tokenizer.fingerprint[:12]}, expected {manifest['tokenizer_fingerprint'][:12]}). "
            "Restore the model's own."
        )
    draw = {**manifest["draw"], "guidance_interval": tuple(manifest["draw"]["guidance_interval"])}
    images = {**manifest["images"], "size": tuple(manifest["images"]["size"])}
    model = UnifiedModel(
        **parts,
        tokenizer=tokenizer,
        prompt_format=PromptFormat.from_dict(manifest["prompt_format"]),
        images=ImagePolicy(**images),
        draw=DrawSettings(**draw),
        card=manifest["card"],
    )
    return model.to(device=device, dtype=dtype).eval()


def load_part(path: str | Path, name: str) -> nn.Module:
    """One part of a saved model.

    Raises:
        ValueError: the model has no such part.
    """
    folder = resolve(path)
    manifest = read_manifest(folder)
    if name not in manifest["parts"]:
        raise ValueError(f"{folder} has no part {name!r}; it has {', '.join(manifest['parts'])}.")
    return _load_part(folder, name, manifest["parts"][name])


def resolve(path: str | Path) -> Path:
    """A model folder by path (or a checkpoint, or a run, whose latest checkpoint it is), or a bundled model by name.

    Raises:
        FileNotFoundError: neither; names the bundled models.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return folder
    if (folder / "model" / MANIFEST).is_file():  # a checkpoint, with the training state beside the model
        return folder / "model"
    saved = sorted((folder / "checkpoints").glob(f"step-*/model/{MANIFEST}"))
    if saved:
        return saved[-1].parent
    bundled = sorted(p.name for p in BUNDLED.iterdir() if (p / MANIFEST).is_file()) if BUNDLED.is_dir() else []
    if str(path) in bundled:
        return BUNDLED / str(path)
    if folder.is_file():
        raise FileNotFoundError(
            f"{folder} is a file, but a model is a folder with {MANIFEST}. Pickled checkpoints are never loaded: "
            "convert released weights to a model folder first."
        )
    if folder.is_dir():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: it is no model folder, or its writing was cut off.")
    raise FileNotFoundError(f"there is no model {str(path)!r}. Give a model folder, or one of: {', '.join(bundled)}.")


def read_manifest(folder: Path) -> dict[str, Any]:
    """``diptych.json`` of a model folder, checked."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}. Restore it or take another checkpoint.") from None
    version = manifest.get("format_version")
    if not isinstance(version, int):
        raise ValueError(f"{file} has no format_version: it was not written by diptych.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}; diptych {__version__} reads up to {FORMAT_VERSION}. "
            f"It needs diptych {manifest.get('diptych_version', 'of a later version')}: pip install -U diptych."
        )
    return manifest


def _save_part(part: nn.Module, folder: Path, dtype: torch.dtype | None) -> list[str]:
    """Writes the weights of a part into one file, or several and an index."""
    folder.mkdir()
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in part.state_dict().items():
        tensor = value.detach().to("cpu", dtype if dtype is not None and value.is_floating_point() else None)
        tensor = tensor.contiguous().clone()
        num_bytes = tensor.numel() * tensor.element_size()
        if size and size + num_bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += num_bytes
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        index = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}, indent=1))
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name)
    return names


def _load_part(folder: Path, name: str, entry: Mapping[str, Any]) -> nn.Module:
    part = build_part(entry["config"])
    state: dict[str, Tensor] = {}
    for file_name in entry["files"]:
        file = folder / name / file_name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: the model folder is incomplete. Copy it again.")
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or cut off ({error}). Copy it again.") from None
    floats = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(floats) == 1 and floats != {torch.float32}:
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    problems = part.load_state_dict(state, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        raise ValueError(
            f"{folder / name} does not fit its configuration: missing {problems.missing_keys[:3]}, "
            f"unknown {problems.unexpected_keys[:3]} (first three of each). The folder mixes files of two models."
        )
    return part


def _replace(temporary: Path, path: Path) -> None:
    """Puts a finished folder in its place; the earlier one goes only after that."""
    for file in temporary.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    if not path.exists():
        os.replace(temporary, path)
        return
    old = temporary.with_name(temporary.name + "-old")
    os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def model_card(model: UnifiedModel, manifest: Mapping[str, Any]) -> str:
    """The README of a model folder."""
    card = model.card
    lines = [f"# {card.get('name', 'A diptych model')}", ""]
    lines += [str(card["description"]), ""] if "description" in card else []
    lines += [
        "| part | class | parameters |",
        "| --- | --- | ---: |",
        *(
            f"| {name} | {type(part).__name__} | {sum(p.numel() for p in part.parameters()):,} |"
            for name, part in model.parts().items()
        ),
        "",
        f"Can: {', '.join(manifest['capabilities'])}. Licence: {card.get('licence', 'not stated')}.",
        "",
        "```python",
        "import diptych",
        f'model = diptych.load("{card.get("name", "path/to/this/folder")}")',
        "```",
        "",
    ]
    for title in ("training", "data", "scores", "limits"):
        if title in card:
            value = card[title]
            lines += [f"## {title.capitalize()}", ""]
            lines += [value, ""] if isinstance(value, str) else ["```json", json.dumps(value, indent=2), "```", ""]
    return "\n".join(lines)
