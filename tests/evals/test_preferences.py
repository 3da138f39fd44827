"""Reward models: their numbers summed up by the rules of each benchmark, and MJHQ-30K's pictures for `diptych fd`."""

import json

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.evals.protocol import Failure
from diptych.evals.rewards import FunctionReward, StoredRewards, named_function, read_rewards, write_rewards
from diptych.evals.scores_file import read_scores
from diptych.evals.tasks import TaskOptions, build_task
from diptych.evals.tasks.mjhq import read_meta
from diptych.evals.tasks.preferences import deviation_of_groups, preference_task, read_plain, read_styles

PICTURE = np.zeros((4, 4, 3), np.uint8)


def brightness(prompts, images):
    """A reward of the test suite's own: mean brightness, from -1 to 1."""
    return [float(image.mean()) / 127.5 - 1 for image in images]


def length(prompts, images):
    return [float(len(prompt)) for prompt in prompts]


length.revision = "7"


@pytest.fixture
def styles(tmp_path):
    folder = tmp_path / "benchmark"
    folder.mkdir()
    (folder / "anime.json").write_text(json.dumps(["a cat", "a dog"]))
    (folder / "photo.json").write_text(json.dumps(["a cup"]))
    return folder


def verdicts_of(task):
    requests = task.requests()
    found = task.judge(requests, [PICTURE] * len(requests))
    return dict(zip([request.id for request in requests], found, strict=True))


def test_hpsv2_is_a_hundred_times_the_cosine_and_a_mean_of_styles(styles):
    rewards = StoredRewards({"anime/00000": 0.2, "anime/00001": 0.3, "photo/00000": 0.31}, "HPSv2.1", "1")
    task = preference_task("hpsv2", styles, examiner=rewards)
    table = task.table(verdicts_of(task), "mine")
    assert {name: score.value for name, score in table.categories.items()} == pytest.approx({"anime": 25, "photo": 31})
    assert table.overall.value == pytest.approx(28)
    assert task.judge_record() == {"judge": {"name": "HPSv2.1", "revision": "1"}, "rules": "hpsv2"}
    assert [place.file for place in task.places().values()] == ["anime/00000.jpg", "anime/00001.jpg", "photo/00000.jpg"]
    hundred = preference_task("hpsv2", styles, examiner=StoredRewards(dict.fromkeys(task.places(), 27.0), "a", "1"))
    with pytest.raises(ValueError, match=r"hpsv2 is 100 times a cosine; the reward model returned 27\. Return"):
        verdicts_of(hundred)


def test_deviations_are_of_groups_of_eighty():
    values = [0.0] * 80 + [2.0] * 80
    assert deviation_of_groups(values) == pytest.approx(1.0)  # of the population, as numpy's std
    assert deviation_of_groups(values[:100]) is None and deviation_of_groups([]) is None


def test_other_rewards_are_a_mean_over_all_pictures(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [("x", "a"), ("x", "bb"), ("y", "cccc")]
    file.write_text("\n".join(json.dumps({"category": category, "prompt": prompt}) for category, prompt in rows))
    task = preference_task("image-reward", file, examiner=named_function(f"{__name__}:length"))
    table = task.table(verdicts_of(task), "mine")
    assert table.overall.value == pytest.approx(7 / 3)
    assert {name: score.value for name, score in table.categories.items()} == {"x": 1.5, "y": 4.0}
    assert task.judge_record()["judge"] == {"name": f"{__name__}:length", "revision": "7"}
    (tmp_path / "plain.txt").write_text("one\n\ntwo\n")
    assert [item.prompt for item in read_plain(tmp_path / "plain.txt")] == ["one", "two"]


def test_a_missing_picture_counts_as_the_lowest_reward_of_the_run(tmp_path, capsys):
    """Zero would be a good reward among negative ones, and leaving it out would reward what cannot be drawn."""
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    write_rewards(
        tmp_path / "r.jsonl", {"reward_model": "a model", "revision": "3"}, {"all/00000": -2.0, "all/00002": -0.5}
    )
    run = ["--on", "image-reward", "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "s")]
    assert main(["evaluate", "constant", *run, "--judge", str(tmp_path / "r.jsonl")]) == 0
    (found,) = read_scores(tmp_path / "s" / "scores.json")
    assert found.overall.value == pytest.approx(-1.5)
    assert found.details["missing"] == {
        "count": 1, "counted_as": "the lowest reward of the run", "score_without_them": pytest.approx(-1.25)
    }  # fmt: skip
    report = (tmp_path / "s" / "report.md").read_text()
    assert "1 samples are missing and counted as the lowest reward of the run, such as all/00001" in report
    assert '"name": "a model", "revision": "3"' in report
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "s"), "--phase", "score", "--judge", "scenes"]) == 0
    assert "image-reward needs a reward model: give --judge MODULE:FUNCTION" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_function_is_a_reward_model():
    model = named_function(f"{__name__}:brightness")
    assert len(model.revision) == 16  # a digest of the module's source, as it has no revision of its own
    assert model.rate(["a"], ["p"], [PICTURE]) == [-1.0]
    short = FunctionReward(lambda prompts, images: [1.0], "short", "1")
    with pytest.raises(ValueError, match="short was given 2 pictures and returned 1 numbers"):
        short.rate(["a", "b"], ["p", "q"], [PICTURE, PICTURE])
    broken = FunctionReward(lambda prompts, images: [float("nan")], "broken", "1")
    assert broken.rate(["a"], ["p"], [PICTURE]) == [Failure("broken returned nan, which is no number")]
    with pytest.raises(ValueError, match="--judge nowhere:f: the module nowhere cannot be imported"):
        named_function("nowhere:f")
    with pytest.raises(ValueError, match="--judge json:f: json has no function 'f'"):
        named_function("json:f")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"reward": 1}, r"line 2: which picture is it\? Give \"id\""),
        ({"id": "b", "reward": "high"}, "line 2: reward must be a number, got 'high'"),
        ({"id": "b", "reward": True}, "line 2: reward must be a number, got True"),
        ({"id": "a", "reward": 1}, "line 2: line 1 is about the same picture, a"),
    ],
)
def test_a_mistake_in_rewards_is_named_with_its_line(tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"id": "a", "reward": 0.5}) + "\n" + json.dumps(line))
    with pytest.raises(ValueError, match=message):
        read_rewards(path)


def test_mistakes_in_prompts_are_named(styles, tmp_path):
    (styles / "anime.json").write_text('["a", 1]')
    with pytest.raises(ValueError, match=r"anime\.json: a JSON list of prompts is expected"):
        read_styles(styles)
    with pytest.raises(FileNotFoundError, match=r"There is no .*none with anime\.json"):
        read_styles(tmp_path / "none")
    for name in ("hpsv2", "hpsv3", "image-reward", "mjhq"):
        with pytest.raises(ValueError, match=f"{name} needs its prompts: give --prompts"):
            build_task(name, TaskOptions())
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}')
    with pytest.raises(ValueError, match="line 1: prompt must be a text, got ''"):
        read_plain(tmp_path / "p.jsonl")
    meta = tmp_path / "meta_data.json"
    for content, message in (
        ({"a": {"category": "cars", "prompt": "p"}}, "'a': category must be one of animals, art, .*got 'cars'"),
        ({"a": {"category": "art", "prompt": 1}}, "'a': prompt must be a text, got 1"),
        ({"a/b": {"category": "art", "prompt": "p"}}, "'a/b': this is no name of a picture"),
        ({}, "an object with an entry for each picture is expected"),
    ):
        meta.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_meta(meta)


def test_mjhq_pictures_lie_by_category_as_the_reference_does(tmp_path, capsys):
    meta = {f"{category}{number}": {"category": category, "prompt": f"{category} {number}"}
            for category in ("animals", "food") for number in range(2)}  # fmt: skip
    (tmp_path / "meta_data.json").write_text(json.dumps(meta))
    run = ["--on", "mjhq", "--prompts", str(tmp_path / "meta_data.json"), "--out", str(tmp_path / "s")]
    assert main(["evaluate", "constant", *run, "--export", str(tmp_path / "pictures")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "4 pictures in" in told and "mjhq is a distance between sets: write the pictures with --export DIR" in told
    made = sorted(str(path.relative_to(tmp_path / "pictures")) for path in (tmp_path / "pictures").rglob("*.png"))
    assert made == ["animals/animals0.png", "animals/animals1.png", "food/food0.png", "food/food1.png"]
    # What the message says: the distance over all, and of one category.
    for name in made:
        place = (tmp_path / "reference" / name).with_suffix(".jpg")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 60).convert("RGB").save(place)
    for part, counts in (("", [4, 4]), ("food", [2, 2])):
        sides = [str(tmp_path / side / part) for side in ("pictures", "reference")]
        words = ["--features", "tiny=tests.cli.fd_network:tiny", "--cache", str(tmp_path / "c"), "--device", "cpu"]
        assert main(["fd", *sides, *words, "--out", str(tmp_path / "fd")]) == 0
        (score,) = json.loads((tmp_path / "fd" / "fd.json").read_text())["scores"]
        assert score["counts"] == counts and score["distance"]["value"] > 0


def test_pictures_for_hpsv2_are_jpeg_and_come_back(styles, tmp_path):
    run = ["--on", "hpsv2", "--prompts", str(styles), "--out"]
    pictures = tmp_path / "pictures"
    assert main(["evaluate", "constant", *run, str(tmp_path / "s"), "--export", str(pictures)]) == 0
    with Image.open(pictures / "photo" / "00000.jpg") as image:
        assert image.format == "JPEG" and image.size == (64, 64)
    judge = ["--judge", f"{__name__}:brightness"]
    assert main(["evaluate", f"pictures:{pictures}", *run, str(tmp_path / "t"), *judge]) == 0
    (found,) = read_scores(tmp_path / "t" / "scores.json")
    assert found.overall.value == pytest.approx(100 * (128 / 127.5 - 1), abs=1.0)
