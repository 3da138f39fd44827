"""The model folder: one JSON file, one folder of safetensors a part, the tokenizer, a page for people.

    diptych.json              format version, parts with their configurations, prompt format, licence, scores
    PART/model.safetensors    weights of a part (several files and an index above 4 GB)
    tokenizer/                the tokenizer's own files
    adapters/                 low-rank adapters that are in the weights, where some were trained (`adapter_files`)
    README.md                 the model card

Written whole or not at all; safetensors and JSON only.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych import __version__
from diptych.data.prompt_format import PromptFormat
from diptych.data.tokenizer import FastTokenizer, Tokenizer
from diptych.models.adapters import PlainState
from diptych.models.part import build_part, part_kind
from diptych.unified.adapter_files import FOLDER as ADAPTERS
from diptych.unified.adapter_files import save_adapters
from diptych.unified.model import UnifiedModel
from diptych.unified.settings import DrawSettings, ImagePolicy

FORMAT_VERSION = 1
MANIFEST = "diptych.json"
SHARD_BYTES = 4 * 1024**3
BUNDLED = Path(__file__).parent.parent / "assets" / "models"

_FIELDS = {
    "parts": dict,
    "prompt_format": dict,
    "tokenizer_fingerprint": str,
    "images": dict,
    "draw": dict,
    "card": dict,
}
_PARTS = {
    "unified": ("autoencoder", "encoder", "connector", "backbone", "image_head"),
    "dual_encoder": ("encoder", "text_encoder", "contrastive_head"),
    "class_generator": ("denoiser", "autoencoder"),
}
"""The parts that each kind of model may have. A dual encoder is trained for its parts; only unified models load whole
by `load_model`."""
_FIELDS_OF = {
    "unified": tuple(_FIELDS),
    "dual_encoder": ("parts", "tokenizer_fingerprint", "images", "card"),
    "class_generator": ("parts", "draw", "card"),
}
_IN_ANOTHER_MODEL = "Its parts ({parts}) can be used in another model: name the folder in --model.start-from."
_NOT_UNIFIED = {
    "dual_encoder": f"which neither writes nor draws. {_IN_ANOTHER_MODEL}",
    "class_generator": "which draws classes and no prompts. Load it with "
    "diptych.methods.class_fd_loss.load_class_generator.",
}
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_RESTORE = "Restore the file, or take another checkpoint."
_SAFE_WAY = (
    "If you trust it, convert its weights once: "
    "safetensors.torch.save_file(torch.load(file, weights_only=True), ...), and load those into a part."
)


def save_model(model: UnifiedModel, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes the model folder to ``path``, replacing an earlier one only when the new one is complete.

    Args:
        dtype: floating weights are stored in; by default as they are.

    Raises:
        FileExistsError: there is something else at ``path``, which would be lost.
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    fields = {
        "capabilities": list(model.capabilities),
        "prompt_format": model.prompt_format.to_dict(),
        "images": asdict(model.images),
        "preprocessing_fingerprint": model.images.fingerprint(model.encoder),
        "draw": asdict(model.draw_settings),
        "card": model.card,
    }
    save_parts(path, "unified", model.parts(), model.tokenizer, fields, dtype)


def save_parts(
    path: Path,
    kind: str,
    parts: Mapping[str, nn.Module],
    tokenizer: Tokenizer | None,
    fields: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a model of any kind, given by its parts; raises as ``save_model`` does.

    Args:
        tokenizer: None for a model that reads no text.
        fields: what else ``diptych.json`` is to hold: ``images``, ``card``, ``capabilities`` and what the kind needs.
    """
    path = path.resolve()
    check_replaceable(path)
    with _told_in_words(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            entries: dict[str, Any] = {}
            for name, part in parts.items():
                config = {**part.config_dict(), "kind": part_kind(part)}  # type: ignore[operator]
                entries[name] = {"config": config, "files": _save_part(part, temporary / name, dtype)}
            save_adapters(parts, temporary / ADAPTERS)
            manifest = {
                "format_version": FORMAT_VERSION,
                "diptych_version": __version__,
                "kind": kind,
                "parts": entries,
                **fields,
            }
            if tokenizer is not None:
                manifest["tokenizer_fingerprint"] = tokenizer.fingerprint
                tokenizer.save(temporary / "tokenizer")
            text = json.dumps(manifest, indent=2, ensure_ascii=False)
            (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
            (temporary / "README.md").write_text(model_card(parts, manifest), encoding="utf-8")
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
    if manifest.get("kind", "unified") != "unified":
        reason = _NOT_UNIFIED[manifest["kind"]].format(parts=", ".join(manifest["parts"]))
        raise ValueError(f"{folder} holds a {manifest['kind']}, {reason}")
    parts = {name: _load_part(folder, name, entry) for name, entry in manifest["parts"].items()}
    tokenizer = load_tokenizer(folder, manifest)
    try:
        draw = {**manifest["draw"], "guidance_interval": tuple(manifest["draw"]["guidance_interval"])}
        images: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in manifest["images"].items()
        }
        model = UnifiedModel(
            **parts,
            tokenizer=tokenizer,
            prompt_format=PromptFormat.from_dict(manifest["prompt_format"]),
            images=ImagePolicy(**images),
            draw=DrawSettings(**draw),
            card=manifest["card"],
        )
    except (KeyError, TypeError, ValueError) as error:
        lacks = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder / MANIFEST} describes no model: {lacks.removesuffix('.')}. {_RESTORE}") from error
    found = model.images.fingerprint(model.encoder)
    if manifest.get("preprocessing_fingerprint", found) != found:  # the first folders have none
        raise ValueError(
            f"{folder / MANIFEST}: pictures would not be prepared as in training (fingerprint {found[:12]}, expected "
            f"{manifest['preprocessing_fingerprint'][:12]}). Restore 'images' and the encoder's config. To train for "
            "another size, start a recipe from this model's parts (--model.start-from)."
        )
    return _cast(model, dtype).to(device).eval()


def _cast(model: UnifiedModel, dtype: torch.dtype | None) -> UnifiedModel:
    """Weights and saved buffers in a dtype. What parts compute for themselves, such as rotary frequencies, keeps its
    precision: rounded to bfloat16, positions would turn by other angles."""
    if dtype is None:
        return model
    for module in model.modules():
        for value in module._parameters.values():
            if value is not None and value.is_floating_point():
                value.data = value.data.to(dtype)
        for name, buffer in module._buffers.items():
            is_saved = name not in module._non_persistent_buffers_set
            if buffer is not None and buffer.is_floating_point() and is_saved:
                module._buffers[name] = buffer.to(dtype)
    return model


def load_tokenizer(folder: Path, manifest: Mapping[str, Any]) -> FastTokenizer:
    """The tokenizer of a model folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is another than that the model was saved with.
    """
    tokenizer = FastTokenizer.load(folder / "tokenizer")
    if tokenizer.fingerprint != manifest["tokenizer_fingerprint"]:
        raise ValueError(
            f"{folder / 'tokenizer'} is not the tokenizer this model was trained with (fingerprint "
            f"{tokenizer.fingerprint[:12]}, expected {manifest['tokenizer_fingerprint'][:12]}). "
            "Restore the model's own."
        )
    return tokenizer


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
    saved = [file.parent for file in (folder / "checkpoints").glob(f"step-*/model/{MANIFEST}")]
    if saved:
        return max(saved, key=lambda model: (len(model.parent.name), model.parent.name))
    bundled = sorted(p.name for p in BUNDLED.iterdir() if (p / MANIFEST).is_file()) if BUNDLED.is_dir() else []
    if str(path) in bundled:
        return BUNDLED / str(path)
    raise FileNotFoundError(_no_model(folder, str(path), bundled))


def _no_model(folder: Path, name: str, bundled: list[str]) -> str:
    """Why there is no model at a path, and what to do."""
    pickles = [folder] if folder.is_file() else sorted(folder.glob("*")) if folder.is_dir() else []
    pickle = next((file for file in pickles if file.suffix in _PICKLES), None)
    if pickle is not None:
        return (
            f"{pickle} is a pickled checkpoint, which can run any code when it is loaded, and is never loaded here. "
            f"A model is a folder with {MANIFEST} and safetensors. {_SAFE_WAY}"
        )
    if folder.is_file():
        return f"{folder} is a file, but a model is a folder with {MANIFEST}. Give that folder."
    if (folder / "recipe.json").is_file():
        return f"the run {folder} has no checkpoint yet, so there is no model in it. Continue it with `diptych resume`."
    if folder.is_dir():
        return f"{folder} holds no {MANIFEST}: it is no model folder, or its writing was cut off."
    kept = sorted(file.parent for file in folder.parent.glob(f".{folder.name}-*/{MANIFEST}")) if folder.name else []
    if kept:
        return f"there is no model {name!r}, but saving it was cut off and left it in {kept[0]}. Rename that folder."
    return f"there is no model {name!r}. Give a model folder" + (
        f", or one of: {', '.join(bundled)}." if bundled else "."
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """``diptych.json`` of a model folder, checked."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}. {_RESTORE}") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{file} has no format_version: it was not written by diptych.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}; diptych {__version__} reads up to {FORMAT_VERSION}. "
            f"It needs diptych {manifest.get('diptych_version', 'of a later version')}: pip install -U diptych."
        )
    kind = manifest.get("kind", "unified")
    if kind not in _PARTS:
        raise ValueError(f"{file} is of a model of kind {kind!r}, not one of {', '.join(_PARTS)}. {_RESTORE}")
    for name in _FIELDS_OF[kind]:
        expected = _FIELDS[name]
        if name not in manifest:
            raise ValueError(f"{file} is damaged: it lacks {name!r}. {_RESTORE}")
        if not isinstance(manifest[name], expected):
            form = "an object" if expected is dict else "text"
            raise ValueError(f"{file} is damaged: {name!r} must be {form}, got {manifest[name]!r}. {_RESTORE}")
    for name, entry in manifest["parts"].items():
        if name not in _PARTS[kind]:
            raise ValueError(
                f"{file} names a part {name!r}, which a model does not have: parts are {', '.join(_PARTS[kind])}. "
                f"{_RESTORE}"
            )
        if not (isinstance(entry, dict) and {"config", "files"} <= entry.keys() and isinstance(entry["config"], dict)):
            raise ValueError(f"{file} is damaged: the part {name!r} needs 'config' and 'files'. {_RESTORE}")
    return manifest


def _save_part(part: nn.Module, folder: Path, dtype: torch.dtype | None) -> list[str]:
    """Writes the weights of a part into one file, or several and an index; no more than one is copied at a time."""
    folder.mkdir()
    plain = PlainState(part)  # adapters, where there are any, are added to the weights
    state = plain.tensors
    shards: list[list[str]] = [[]]
    size = 0
    for key, value in state.items():
        num_bytes = value.numel() * (dtype if dtype is not None and value.is_floating_point() else value.dtype).itemsize
        if size and size + num_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += num_bytes
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        index = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}, indent=1))
    for name, shard in zip(names, shards, strict=True):
        save_file({key: _stored(plain[key], dtype) for key in shard}, folder / name)
    return names


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor of its own on the CPU."""
    kept = dtype if dtype is not None and value.is_floating_point() else None
    return value.detach().to("cpu", kept).contiguous().clone()


def _load_part(folder: Path, name: str, entry: Mapping[str, Any]) -> nn.Module:
    try:
        part = build_part(entry["config"])
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST}, part {name!r}: {error}") from error
    state: dict[str, Tensor] = {}
    for file_name in entry["files"]:
        file = folder / name / file_name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: the model folder is incomplete. Copy it again.")
        if file.suffix in _PICKLES:
            raise ValueError(f"{file} is a pickle file, which can run any code when it is loaded. {_SAFE_WAY}")
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or cut off ({error}). Copy it again.") from None
    own = part.state_dict()
    missing, unknown = [key for key in own if key not in state], [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unknown or shapes:
        raise ValueError(
            f"{folder / name} does not fit its configuration: missing {missing[:3]}, unknown {unknown[:3]}, of another "
            f"shape {shapes[:3]} (first three of each). The folder mixes files of two models."
        )
    part.load_state_dict(state)  # into float32, whatever the file holds
    return part


@contextmanager
def _told_in_words(path: Path) -> Iterator[None]:
    """Gives an error of the disk its place and a way out; safetensors' own errors become ``OSError``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if code is None:
            raise
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = "no space left on the disk. Free some, or save elsewhere"
        elif code in (errno.ENOTDIR, errno.EEXIST):
            reason = "something on the way there is a file, not a folder. Save to another place"
        else:
            reason = f"{os.strerror(code).lower()}. Save to a place you may write to"
        raise OSError(code, f"the model cannot be saved: {reason}", str(path)) from error


def check_replaceable(path: Path) -> None:
    """Raises ``FileExistsError`` unless there is nothing at ``path``, or a model folder with nothing else in it."""
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if names:
            own = {MANIFEST, "README.md", "tokenizer", ADAPTERS}.union(*_PARTS.values()) if MANIFEST in names else set()
            others = sorted(names - own)
            if others:
                raise FileExistsError(
                    f"{path} holds files that are not of a model ({', '.join(others[:3])}) and would be lost. "
                    "Save to a new folder."
                )
    elif path.exists():
        raise FileExistsError(f"{path} is a file, and a model is saved as a folder. Choose another name.")


def _replace(temporary: Path, path: Path) -> None:
    """Puts a finished folder in its place; the earlier one goes only after that."""
    for file in temporary.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)  # mkdtemp's are for one user alone
    if not path.exists():
        os.replace(temporary, path)
        return
    old = temporary.with_name(temporary.name + "-old")
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def model_card(parts: Mapping[str, nn.Module], manifest: Mapping[str, Any]) -> str:
    """The README of a model folder."""
    card = manifest["card"]
    place = card.get("name", "path/to/this/folder")
    uses = {
        "unified": ["import diptych", "", f'model = diptych.load("{place}")'],
        "dual_encoder": [
            "from diptych.unified.folder import load_part",
            "",
            'encoder = load_part("path/to/this/folder", "encoder")',
        ],
        "class_generator": [
            "from diptych.methods.class_fd_loss import load_class_generator",
            "",
            'generator = load_class_generator("path/to/this/folder")',
        ],
    }
    lines = [f"# {card.get('name', 'A diptych model')}", ""]
    lines += [str(card["description"]), ""] if "description" in card else []
    lines += [
        "| part | class | parameters |",
        "| --- | --- | ---: |",
        *(
            f"| {name} | {type(part).__name__} | {sum(p.numel() for p in part.parameters()):,} |"
            for name, part in parts.items()
        ),
        "",
        f"Can: {', '.join(manifest['capabilities'])}. Licence: {card.get('licence', 'not stated')}.",
        "",
        "```python",
        *uses[manifest["kind"]],
        "```",
        "",
    ]
    for title in ("training", "data", "scores", "limits"):
        if title in card:
            value = card[title]
            lines += [f"## {title.capitalize()}", ""]
            lines += [value, ""] if isinstance(value, str) else ["```json", json.dumps(value, indent=2), "```", ""]
    return "\n".join(lines)
