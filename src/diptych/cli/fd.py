"""``diptych fd``: Fréchet distances between two sets of images, with intervals, ratios and warnings."""

import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.parser import Parser, whole_number

if TYPE_CHECKING:
    from diptych.cli.fd_report import Score
    from diptych.cli.fd_saved import SavedScores
    from diptych.cli.fd_sides import Side, Work
    from diptych.frechet.features import Features

DESCRIPTION = """\
Fréchet distances (FD; FID with Inception's features) of GENERATED from REFERENCE,
one row a representation, and with --val the ratio FDr to the distance of real images.
A side is a folder, tars, a .parquet or hf:OWNER/NAME, an .npz of images or of
statistics, or MODEL@PROMPTS.txt. Features are kept: a stopped command goes on."""
EXAMPLES = """\
  diptych fd samples/ photos/train --val photos/val --features inception,dinov2,mae
  diptych fd samples.npz imagenet-statistics.npz --features inception=inception.pth
  diptych fd photos/train --features scenes --stats train.npz
  diptych fd diptych-scenes@prompts.txt scenes/ --features scenes"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("generated", metavar="GENERATED", help="the images to be scored")
    parser.add_argument("reference", metavar="REFERENCE", nargs="?", help="what they should look like")
    parser.add_argument("--val", metavar="SIDE", help="real images that are not in REFERENCE, for the ratio FDr")
    parser.add_argument(
        "--features",
        default="inception",
        metavar="NAMES",
        help="of inception, dinov2, dinov3, mae, clip, siglip, siglip2, convnextv2, ijepa, scenes, scenes-objects, "
        "scenes-layout, scenes-autoencoder, pixels, or NAME=WHERE "
        "(default: inception)",
    )
    parser.add_argument(
        "--also",
        default="",
        metavar="NAMES",
        help="more measures of the same features: kid, cmmd, fd-infinity, precision-recall, density-coverage, "
        "inception-score",
    )
    parser.add_argument("--stats", metavar="FILE", help="also write the statistics of GENERATED to this .npz")
    parser.add_argument("--out", metavar="DIR", help="folder for fd.json and fd.svg (default: fd-GENERATED)")
    parser.add_argument(
        "--paper-normalisers",
        action="store_true",
        help="FDr by the constants of arXiv 2604.28190, for REFERENCE = ImageNet 256 training set only",
    )
    pixels = parser.add_argument_group("images")
    pixels.add_argument(
        "--value-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="black and white of float images"
    )
    pixels.add_argument("--clamp", action="store_true", help="clamp float images to the range instead of refusing them")
    pixels.add_argument("--quantize", action="store_true", help="round float images to 8 bits, as saving them would")
    pixels.add_argument("--split", default="train", help="of data sets that have splits (default: train)")
    pixels.add_argument(
        "--max-bad", type=float, default=0.01, metavar="SHARE", help="unreadable images accepted (default: 0.01)"
    )
    pixels.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of images a model draws")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--batch-size", type=whole_number(1), default=64, metavar="N", help="images at a time (default: 64)"
    )
    work.add_argument("--processes", type=whole_number(1), default=1, metavar="N", help="processes (default: 1)")
    work.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default: auto)")
    work.add_argument(
        "--feature-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what networks compute in; part of the fingerprint (default: float32)",
    )
    work.add_argument(
        "--cache",
        default="~/.cache/diptych/features",
        metavar="DIR",
        help="where features are kept (default: %(default)s)",
    )


def run(arguments: Namespace) -> int:
    from diptych.cli.fd_others import check_classes, check_others
    from diptych.cli.fd_saved import SavedScores, score_key
    from diptych.cli.fd_sides import check_statistics, open_side
    from diptych.cli.models import writable_folder
    from diptych.data.picture_files import file_slug
    from diptych.interop.feature_networks import load_features

    specs, others = _checked(arguments), _names(arguments.also)
    work = _work(arguments)
    # a missing side, network or statistic is found before anything is computed
    words = [word for word in (arguments.generated, arguments.reference, arguments.val) if word is not None]
    statistics = [word for word in words if isinstance(open_side(word, work), Path)]
    check_others(others, arguments.generated, arguments.reference, statistics)
    name = Path(arguments.generated.rstrip("/")).name or "images"
    folder = writable_folder(arguments.out or f"fd-{file_slug(name)}")
    keys: dict[str, str] = {}
    with_classes: list[bool] = []
    for spec in specs:
        features = load_features(spec, work.dtype)
        with_classes.append(hasattr(features.network, "logits"))
        _check_normaliser(arguments, features)
        check_statistics(words, features, work)
        keys[spec] = score_key(arguments, features, work, others)
    check_classes(others, with_classes)
    saved = SavedScores(folder / "fd.json", arguments, keys)
    scores: dict[str, Score] = {} if arguments.stats is not None else saved.known()
    try:
        for spec in specs:
            if spec in scores:
                continue
            if arguments.reference is not None:
                saved.write(scores)  # what is done is saved before the next network runs
            if len(specs) > 1:
                features = load_features(spec, work.dtype)
            score = _score(arguments, spec, features, work, others, several=len(specs) > 1)
            if score is not None:
                scores[spec] = score
    except BaseException:
        if scores:
            print(
                f"{len(scores)} of {len(specs)} networks are done; the same command goes on from there.",
                file=sys.stderr,
            )
        raise
    if arguments.reference is not None:
        _show(saved, [scores[spec] for spec in specs], f"{name} against {arguments.reference}")
    return 0


def _show(saved: "SavedScores", scores: "list[Score]", title: str) -> None:
    from rich.console import Console

    from diptych.cli.fd_report import bar_chart, print_table
    from diptych.frechet.ratio import fdr_k

    ratios = {score.features: score.fdr for score in scores if score.fdr is not None}
    mean = fdr_k(ratios) if len(ratios) == len(scores) else None
    print_table(scores, mean, Console(highlight=False))
    for warning in dict.fromkeys(line for score in scores for line in score.warnings):
        print(f"warning: {warning}")
    saved.write(dict(zip(saved.keys, scores, strict=True)), mean)
    chart = saved.path.with_suffix(".svg")
    chart.write_text(bar_chart(scores, title), encoding="utf-8")
    print(saved.path)
    print(chart)


def _check_normaliser(arguments: Namespace, features: "Features") -> None:
    from diptych.frechet.ratio import PAPER_NORMALISERS

    if arguments.paper_normalisers and features.name not in PAPER_NORMALISERS:
        raise ValueError(
            f"--paper-normalisers: the paper has none for {features.name}, only for "
            f"{', '.join(PAPER_NORMALISERS)}. Give --val instead."
        )


def _score(
    arguments: Namespace, spec: str, features: "Features", work: "Work", others: Sequence[str], *, several: bool
) -> "Score | None":
    from dataclasses import asdict

    from diptych.cli.fd_others import other_scores
    from diptych.cli.fd_report import Score
    from diptych.cli.fd_sides import measure_side
    from diptych.frechet.ratio import distance_estimate, fdr, merged

    generated = measure_side(arguments.generated, spec, features, work)
    if arguments.stats is not None:
        print(_save_statistics(Path(arguments.stats), features.name if several else "", merged(generated.groups)))
    if arguments.reference is None:
        return None
    reference = measure_side(arguments.reference, spec, features, work)
    distance = distance_estimate(generated.groups, reference.groups)
    normaliser, source, error = _normaliser(arguments, spec, features, reference, work)
    return Score(
        features=features.name,
        network=features.network_id,
        preprocessing=features.fingerprint,
        settings=asdict(features.preprocessing),
        dim=features.dim,
        counts=(generated.count, reference.count),
        pixels={
            role: {} if side.extracted is None else side.extracted.pixel_kinds
            for role, side in (("generated", generated), ("reference", reference))
        },
        distance=distance,
        normaliser=normaliser,
        normaliser_source=source,
        normaliser_relative_error=error,
        fdr=None if normaliser is None else fdr(distance.value, normaliser),
        others=other_scores(others, generated, reference, features, work.seed),
        warnings=tuple(_warnings(generated, reference, features.dim)),
    )


def _normaliser(
    arguments: Namespace, spec: str, features: "Features", reference: "Side", work: "Work"
) -> tuple[float | None, str | None, float | None]:
    from diptych.cli.fd_sides import measure_side
    from diptych.frechet.distance import frechet_distance
    from diptych.frechet.ratio import PAPER_NORMALISERS, merged

    if arguments.paper_normalisers:
        known = PAPER_NORMALISERS[features.name]
        return known.value, known.source, known.relative_error
    if arguments.val is None:
        return None, None, None
    validation = measure_side(arguments.val, spec, features, work)
    a, b = merged(validation.groups), merged(reference.groups)
    key = hashlib.sha256(
        b"".join(value.cpu().numpy().tobytes() for value in (a.mean, a.covariance, b.mean, b.covariance))
    )
    file = work.cache / "normalisers" / f"{key.hexdigest()[:24]}.json"
    if file.exists():
        value = float(json.loads(file.read_text(encoding="utf-8"))["distance"])
    else:
        value = frechet_distance(a, b)
        file.parent.mkdir(parents=True, exist_ok=True)
        about = {"distance": value, "network": features.network_id, "preprocessing": features.fingerprint}
        file.write_text(json.dumps(about), encoding="utf-8")
    return value, f"FD({arguments.val}, {arguments.reference})", None


def _warnings(generated: "Side", reference: "Side", dim: int) -> list[str]:
    from diptych.frechet.sample_checks import count_warnings, pair_warnings, set_warnings

    found = []
    for side in (generated, reference):
        found += count_warnings(side.name, side.count, dim)
        if side.extracted is not None:
            found += set_warnings(side.name, side.extracted)
    if generated.extracted is not None and reference.extracted is not None:
        found += pair_warnings((generated.name, reference.name), (generated.extracted, reference.extracted))
    return found


def _save_statistics(path: Path, suffix: str, moments: Any) -> Path:
    path = path.with_name(f"{path.stem}-{suffix}{path.suffix}") if suffix else path
    path.parent.mkdir(parents=True, exist_ok=True)
    moments.save(path)
    return path


def _checked(arguments: Namespace) -> list[str]:
    """The feature networks asked for.

    Raises:
        ValueError: options that contradict each other.
    """
    specs = _names(arguments.features)
    if not specs:
        raise ValueError("--features needs at least one name, such as inception.")
    if arguments.reference is None and arguments.stats is None:
        raise ValueError("fd needs GENERATED and REFERENCE, or one side with --stats FILE.npz.")
    if arguments.stats is not None and not arguments.stats.endswith(".npz"):
        raise ValueError(f"--stats must end in .npz, got {arguments.stats}.")
    if arguments.val is not None and arguments.paper_normalisers:
        raise ValueError("--val and --paper-normalisers are two ways to normalise: give one.")
    if not 0 <= arguments.max_bad < 1:
        raise ValueError(f"--max-bad is a share from 0 up to 1, got {arguments.max_bad:g}.")
    return specs


def _names(text: str) -> list[str]:
    """A list with commas between its members, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _work(arguments: Namespace) -> "Work":
    import torch

    from diptych.cli.fd_sides import Work
    from diptych.frechet.extraction import PixelRule

    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    value_range = None if arguments.value_range is None else (arguments.value_range[0], arguments.value_range[1])
    rule = PixelRule(
        value_range=value_range, outside="clamp" if arguments.clamp else "refuse", quantize=arguments.quantize
    )
    return Work(
        cache=Path(arguments.cache).expanduser(),
        rule=rule,
        dtype=arguments.feature_dtype,
        batch_size=arguments.batch_size,
        num_processes=arguments.processes,
        device=device,
        split=arguments.split,
        seed=arguments.seed,
        max_bad=arguments.max_bad,
    )
