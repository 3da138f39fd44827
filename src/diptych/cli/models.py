"""What the verbs that use a model share: its options, loading it, and the record of how a picture was made."""

import hashlib
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych import __version__
from diptych.cli.parser import Parser

if TYPE_CHECKING:
    from diptych.unified import UnifiedModel

DEFAULT_MODEL = "diptych-scenes"
_SAMPLED_BYTES = 1 << 20


def add_model_options(parser: Parser) -> None:
    """``--model``, ``--adapters``, ``--offload``, ``--bits``, ``--device`` and ``--dtype``."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"bundled model, model folder, checkpoint of a run, or BLIP3-o as released (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--adapters",
        metavar="DIR",
        help="LoRA adapters that are added to its weights: a folder, or a run that trained them",
    )
    parser.add_argument(
        "--offload", action="store_true", help="keep on the GPU only what runs just then: less GPU memory, slower"
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 4),
        help="weights of backbone and denoiser as whole numbers of so many bits: less memory (4: on a GPU alone)",
    )
    add_device_options(parser)


def add_device_options(parser: Parser) -> None:
    """``--device`` and ``--dtype``."""
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:1 …, or parts' own: backbone=cuda:0,denoiser=cuda:1 (default: auto)",
    )
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16 (default: auto)")


def add_think_option(parser: Parser, before: str) -> None:
    """Whether a thought is written first; the model's own habit where neither is given."""
    parser.add_argument(
        "--think",
        action=BooleanOptionalAction,
        help=f"write a thought before {before}, as a model must have been trained to (default: its habit)",
    )


def load_model(name: str, arguments: Namespace, capability: str | None = None) -> "UnifiedModel":
    """The model, able to do what the verb needs.

    Raises:
        FileNotFoundError: no such model.
        ValueError: the model is damaged, or lacks ``capability``.
    """
    from diptych.loading import load

    model = load(
        name,
        device=arguments.device,
        dtype=arguments.dtype,
        memory="offload" if getattr(arguments, "offload", False) else "all",
        adapters=getattr(arguments, "adapters", None),
        bits=getattr(arguments, "bits", None),
    )
    if capability is not None and capability not in model.capabilities:
        raise ValueError(
            f"{name} cannot do {capability}; it can do {', '.join(model.capabilities)}. Choose another with --model."
        )
    return model


def model_record(model: "UnifiedModel", name: str) -> dict[str, Any]:
    """What a picture's metadata says about the model that drew it."""
    import torch

    return {
        "model": name,
        "model_fingerprint": folder_fingerprint(name),
        "device": str(model.device),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        **({} if model.bits is None else {"bits": model.bits}),
        "versions": {"diptych": __version__, "torch": torch.__version__},
    }


def folder_fingerprint(name: str) -> str:
    """Tells models apart: a hash over the files of the model folder, 16 hexadecimal digits.

    Of every file it takes name, size, and the first and last mebibyte, so that a model of many gigabytes takes no time.
    The model card for people is left out.
    """
    from diptych.interop.released import released_kind
    from diptych.unified.folder import resolve

    folder = Path(name) if released_kind(name) is not None else resolve(name)
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(_SAMPLED_BYTES))
            handle.seek(max(size - _SAMPLED_BYTES, handle.tell()))
            digest.update(handle.read())
    return digest.hexdigest()[:16]


def writable_folder(path: str | Path) -> Path:
    """The folder, made if needed; checked before a model is loaded or trained for it.

    Raises:
        OSError: it cannot be made or written.
    """
    folder = Path(path)
    probe = folder / ".diptych-write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OSError(f"cannot write to the folder {folder} ({reason}). Choose another one with --out.") from None
    return folder
