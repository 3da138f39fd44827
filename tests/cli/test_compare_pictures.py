"""``diptych compare --pictures``: recipes on real pictures with texts are scored on held-out ones of their own."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli.compare_pictures import held_out_pictures, picture_distances
from diptych.cli.compare_plan import Scoring
from diptych.cli.main import main
from diptych.interop.feature_networks import load_features

SECONDS = "tests.cli.tiny_recipe:seconds"
QUICK = (
    "--device",
    "cpu",
    "--num-prompts",
    "2",
    "--num-noises",
    "2",
    "--features",
    "pixels,small=tests.cli.fd_network:tiny",
)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 families in two styles; the first four families of each have two variants."""
    path = tmp_path_factory.mktemp("held-out") / "pictures.tar"
    draw = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for style in ("flat", "round"):
            for variant in range(52):
                family = variant if variant < 48 else variant - 48
                pixels = np.full((32, 32, 3), draw.integers(0, 256, 3), dtype=np.uint8)
                picture = io.BytesIO()
                Image.fromarray(pixels).save(picture, "PNG")
                name = f"{style}-{variant:02d}"
                about = json.dumps({"style": style, "family": family}).encode()
                for suffix, content in (("png", picture.getvalue()), ("txt", name.encode()), ("json", about)):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return path


def scoring(tars: Path, **changes: object) -> Scoring:
    settings = {"pictures": (str(tars),), "category": "style", "group": "family", "num_per_category": 22} | changes
    return Scoring(tasks=(), num_prompts=2, num_noises=2, features=("pixels",), **settings)  # type: ignore[arg-type]


def test_one_of_each_group_is_drawn_or_left_for_the_reference(tars: Path):
    drawn, others = held_out_pictures(scoring(tars))
    assert [sum(e.metadata["style"] == style for e in drawn) for style in ("flat", "round")] == [22, 22]
    found = [(e.metadata["style"], e.metadata["family"]) for e in (*drawn, *others)]
    assert len(found) == len(set(found)) == 96
    families = [e.metadata["family"] for e in drawn if e.metadata["style"] == "flat"]
    assert families[0] == 0 and families[-1] == 47 and max(np.diff(families)) <= 3
    assert len(held_out_pictures(scoring(tars, group=""))[1]) == 104 - 44


def test_a_recipe_is_scored_on_them(tars: Path, tmp_path: Path):
    words = ("compare", SECONDS, "--budget", "examples=24", "--uncounted", "features", "--out", tmp_path)
    held_out = ("--pictures", tars, "--category", "style", "--group", "family", "--num-per-category", "20")
    assert main([*map(str, (*words, *held_out)), *QUICK]) == 0
    content = json.loads((tmp_path / "compare.json").read_text())
    (cell,) = content["cells"]
    tables = {(table["benchmark"], table["contender"]): table for table in cell["tables"]}
    benchmarks = ("naming among 20", "drawing among 20, pixels", "drawing among 20, small")
    assert {benchmark for benchmark, _ in tables} == set(benchmarks)
    for benchmark in benchmarks:
        assert tables[benchmark, "chance"]["overall"]["value"] == pytest.approx(0.05)
        assert tables[benchmark, cell["recipe"]]["overall"]["num_items"] == 40
    assert {"pixels", "small"} == set(cell["distances"]) == set(cell["diversity"])
    assert cell["distances"]["pixels"]["count"] == 40 and cell["distances"]["pixels"]["fdr"] > 1
    assert cell["prompts"] == ["flat-00", "round-47"] and cell["diversity_of_real"] == {}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "drawing among 20, small" in page and page.count("<img") == 2 * 2
    text = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert "real pictures |" not in text and "Understanding kept" not in text


def test_real_pictures_have_a_ratio_of_one():
    pixels = np.random.default_rng(1).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    found = picture_distances(pixels[:30], pixels[30:], pixels[:30], {"pixels": load_features("pixels")})
    assert found["pixels"]["fdr"] == pytest.approx(1.0) and found["pixels"]["value"] > 0
    darker = picture_distances(pixels[:30] // 2, pixels[30:], pixels[:30], {"pixels": load_features("pixels")})
    assert darker["pixels"]["fdr"] > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"category": "colour"},
            "--category colour: picture 'pictures.tar.flat-00' has no such metadata; it has family, style",
        ),
        ({"group": "kin"}, "--group kin: picture 'pictures.tar.flat-00' has no such metadata"),
        ({"category": "family", "group": ""}, "20 different pictures of each category are needed, '0' has 4"),
    ],
)
def test_pictures_that_cannot_be_told_apart_are_refused(tars: Path, changes: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        held_out_pictures(scoring(tars, **changes))


def test_a_category_without_pictures_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["compare", SECONDS, "--category", "style", "--out", str(tmp_path / "c"), *QUICK]) == 2
    assert "--category and --group are keys of --pictures" in capsys.readouterr().err
