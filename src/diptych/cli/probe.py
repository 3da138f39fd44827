"""``diptych probe``: entropies of hidden states, layer by layer, of understanding and of generation."""

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from diptych.cli.models import add_device_options, folder_fingerprint, load_model, writable_folder
from diptych.cli.parser import Parser, whole_number

if TYPE_CHECKING:
    from diptych.evals.entropy_probe import Curve
    from diptych.evals.report_data import Chart

DESCRIPTION = (
    "Measures the entropy of hidden states on scenes of the built-in world, or on pictures with captions, at prompt "
    "and response, when the model describes pictures (und) and when it draws (gen), and whether the two differ. In "
    "bits, not a score."
)
EXAMPLES = """\
  diptych probe diptych-scenes
  diptych probe runs/mine --data photographs --scenes 100
  diptych probe runs/understands/model --generator runs/draws/model --out probe"""
TITLES = {
    "H_p": "Entropy of prompts",
    "H_r": "Entropy of responses",
    "H_cond": "Response given its prompt",
    "H_cond_shuffled": "Response given another prompt (reference)",
    "H_cond_excess": "Own prompt minus another",
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="bundled model, model folder or checkpoint of a run")
    parser.add_argument("--generator", metavar="MODEL", help="another model that draws, where MODEL only understands")
    parser.add_argument("--out", metavar="DIR", default="probe", help="folder of the results (default: probe)")
    parser.add_argument("--split", choices=("train", "test", "novel"), default="test", help="scenes (default: test)")
    parser.add_argument("--scenes", type=whole_number(2), default=64, metavar="N", help="how many (default: 64)")
    parser.add_argument("--data", metavar="DIR", default="", help="folder of captioned pictures in place of scenes")
    parser.add_argument(
        "--tokens", type=whole_number(2), default=8, metavar="N", help="of each prompt and response (default: 8)"
    )
    parser.add_argument("--layers", type=whole_number(0), nargs="+", metavar="I", help="0: embedding (default: all)")
    parser.add_argument(
        "--bandwidth", type=float, default=0.4, metavar="X", help="of the kernel, in median distances (default: 0.4)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="S", help="of the scenes (default: 0)")
    add_device_options(parser)


def run(arguments: Namespace) -> int:
    from diptych.cli.contenders import REFERENCES

    for name in (arguments.model, arguments.generator or ""):
        if name in REFERENCES or name.startswith(("http://", "https://")):
            raise ValueError(f"{name} has no hidden states to be probed. Give a model of diptych.")
    from diptych.evals.entropy_probe import ProbeSettings, curves, digest_of, probe, probe_items
    from diptych.evals.manifest import content_hash
    from diptych.evals.report import write_report
    from diptych.evals.report_data import ReportData

    settings = ProbeSettings(
        split=arguments.split,
        scenes=arguments.scenes,
        tokens=arguments.tokens,
        bandwidth=arguments.bandwidth,
        seed=arguments.seed,
        data=arguments.data,
    )
    folder = writable_folder(arguments.out)
    understander = load_model(arguments.model, arguments, "image_to_text")
    generator = load_model(arguments.generator, arguments, "text_to_image") if arguments.generator else understander
    names = [name for name in (arguments.model, arguments.generator) if name]
    rows = probe(understander, generator, settings, "+".join(names), arguments.layers)
    found = curves(rows)
    decides = {
        "models": {name: folder_fingerprint(name) for name in names},
        "dtype": str(next(understander.parameters()).dtype).removeprefix("torch."),
        "settings": vars(settings),
        "items": digest_of(probe_items(settings, understander.images.size)),
        "layers": list(found[0].layers),
        "version": 1,
    }
    record = {"key": content_hash(decides), **decides, "curves": [curve.to_dict() for curve in found]}
    (folder / "probe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "probe.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _print(found)
    probed = f"{settings.scenes} {'pictures' if settings.data else 'scenes'}"
    page = ReportData(
        title=f"Entropy probe of {' + '.join(names)}",
        summary=f"Up to {probed}, {settings.tokens} states of each prompt and response, bits; low and high are the "
        "ends of 95 % bootstrap intervals over them. See docs/entropy.md for what these numbers do not say.",
        charts=tuple(_chart(found, measure) for measure in TITLES),
    )
    print(write_report(page, folder / "report.html"))
    return 0


def _chart(found: "list[Curve]", measure: str) -> "Chart":
    """Both directions with the ends of their intervals."""
    from diptych.evals.report_data import Chart, Line

    lines: list[Any] = []
    for task, words in (("und", "understanding"), ("gen", "generation")):
        curve = next(one for one in found if (one.task, one.measure) == (task, measure))
        for name, y in ((words, curve.mean), (f"{words}, low", curve.low), (f"{words}, high", curve.high)):
            lines.append(Line(name=name, x=curve.layers, y=y))
    return Chart(title=TITLES[measure], x_label="layer", y_label="bits", lines=tuple(lines))


def _print(found: "list[Curve]") -> None:
    """A line for each curve at every layer."""
    for curve in found:
        cells = (
            f"{layer}: {mean:.2f} [{low:.2f}, {high:.2f}]"
            for layer, mean, low, high in zip(curve.layers, curve.mean, curve.low, curve.high, strict=True)
        )
        print(f"{curve.task:8}{curve.measure:16}{'  '.join(cells)}  ({curve.scenes} scenes)")
