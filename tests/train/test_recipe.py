"""Recipes: checks, JSON round trip, presets by name, overrides by flags."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest
import toy_configs
from toy_configs import FolderSource, HubBackbone, NumbersSource, OwnBackbone, ToyModelConfig, tiny, variant

from diptych.train.nearest import nearest
from diptych.train.override import flag_names, override
from diptych.train.presets import load_preset, presets_of, recipe_names
from diptych.train.recipe import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    Recipe,
    SamplingConfig,
    Stage,
    validate,
)
from diptych.train.serialization import from_json, recipe_from_dict, recipe_to_dict, to_json

STAGE = {"trainable": ("a",), "mix": {"s": 1.0}, "objectives": {"o": 1.0}, "num_steps": 1, "batch_size": 4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage(**{**STAGE, "num_steps": -3}), "stage.num_steps must be a finite number of at least 1, got -3"),
        (lambda: Stage(**{**STAGE, "batch_size": 0}), "stage.batch_size must be .* at least 1, got 0"),
        (lambda: Stage(**STAGE, gradient_accumulation=3), "multiple of stage.gradient_accumulation: got 4 and 3"),
        (lambda: Stage(**{**STAGE, "trainable": ()}), 'stage.trainable is empty: name at least one part, or "\\*"'),
        (lambda: Stage(**{**STAGE, "mix": {}}), "stage.mix is empty"),
        (lambda: Stage(**{**STAGE, "mix": {"s": 0.0}}), "stage.mix: every weight is 0"),
        (lambda: Stage(**{**STAGE, "mix": {"s": float("nan")}}), "stage.mix.s must be a finite number"),
        (lambda: Stage(**{**STAGE, "objectives": {"o": -1.0}}), "stage.objectives.o must be .* at least 0, got -1.0"),
        (lambda: OptimizerConfig(lr=0.0), "optimizer.lr must be positive, got 0.0"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), r"optimizer.betas must lie in \[0, 1\)"),
        (lambda: OptimizerConfig(clip_norm=0.0), "clip_norm must be positive, got 0.0. Use None to turn it off."),
        (lambda: OptimizerConfig(ema_decay=1.0), "ema_decay must lie between 0 and 1, got 1.0. Use None"),
        (lambda: OptimizerConfig(lr_multipliers={"x": 0.0}), "lr_multipliers.x must be positive.*to freeze it"),
        (lambda: SamplingConfig(num_steps=0), "sampling.num_steps must be .* at least 1, got 0"),
        (lambda: SamplingConfig(guidance_interval=(0.5, 0.2)), "guidance_interval must be two times"),
        (lambda: SamplingConfig(time_shift=0.5), "sampling.time_shift must be .* at least 1"),
        (lambda: EvaluationConfig(num_prompts=0), "evaluation.num_prompts must be"),
        (lambda: CheckpointConfig(keep=0), "checkpoints.keep must be"),
        (lambda: LoggingConfig(every_steps=0), "logging.every_steps must be"),
        (lambda: replace(tiny(), stages={}), "has no stages"),
        (lambda: replace(tiny(), data={}), "has no data"),
        (lambda: replace(tiny(), seed=-1), r"recipe.seed must lie in \[0, 2\^63\), got -1"),
        (lambda: replace(tiny(), data={"a/b": NumbersSource()}), "a source is named 'a/b'"),
    ],
)
def test_configs_refuse_what_cannot_be_run(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mix_of_an_unknown_source_is_refused_with_the_nearest_name():
    stage = replace(tiny().stages["alignment"], mix={"scene": 1.0})
    with pytest.raises(ValueError, match=r"stages.late.mix names the source 'scene'.* Did you mean scenes\?"):
        validate(replace(tiny(), stages={"late": stage}))


def test_nearest_lists_everything_when_nothing_is_close():
    assert nearest("zzz", ["alpha", "beta"]) == "Known: alpha, beta."
    assert nearest("alpah", ["alpha", "beta"]) == "Did you mean alpha?"
    assert nearest("x", []) == "There are none."
    assert nearest("--num", ["--out", "--num-images"], count=1) == "Did you mean --num-images?"


# --- JSON


@pytest.mark.parametrize("preset", [tiny, variant])
def test_json_round_trip_gives_the_same_value(preset):
    recipe = preset()
    recipe = replace(recipe, data={**recipe.data, "third": NumbersSource(root=Path("a/b"))})
    restored = from_json(to_json(recipe))
    assert restored == recipe
    assert type(restored.model.levels) is tuple and type(restored.model.levels[0]) is tuple
    assert list(restored.stages) == ["alignment", "generation"]  # the order of stages is their meaning
    assert to_json(restored) == to_json(from_json(to_json(restored)))


def test_json_names_the_kind_only_where_there_is_a_choice():
    fields = recipe_to_dict(variant())
    assert fields["format_version"] == 1
    assert fields["model"]["kind"] == "toy_configs:ToyModelConfig"
    assert fields["model"]["backbone"]["kind"] == "toy_configs:HubBackbone"
    assert fields["data"]["mine"]["kind"] == "toy_configs:FolderSource"
    assert "kind" not in fields["stages"]["alignment"]


def test_whole_numbers_written_for_a_float_become_floats():
    fields = edited("stages.generation.mix", {"scenes": 2, "mine": 1})
    assert [type(weight) for weight in recipe_from_dict(fields).stages["generation"].mix.values()] == [float, float]


def edited(path: str, value: object) -> dict:
    fields = recipe_to_dict(tiny())
    *parents, last = path.split(".")
    node = fields
    for name in parents:
        node = node[name]
    node[last] = value
    return fields


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sead", 3, r"recipe.sead is no field of Recipe. Did you mean seed\?"),
        ("stages.generation.num_stps", 3, r"recipe.stages.generation.num_stps is no .* Did you mean num_steps"),
        ("stages.generation.num_steps", "5", r"recipe.stages.generation.num_steps must be a whole number, got \"5\""),
        ("stages.generation.num_steps", True, "must be a whole number, got true"),
        ("stages.generation.num_steps", -5, "recipe.stages.generation: stage.num_steps must be .*, got -5"),
        ("stages.generation.trainable", "all", "recipe.stages.generation.trainable must be a list"),
        ("stages.generation.optimizer.ema_decay", "x", "recipe.stages.generation.optimizer.ema_decay must be a number"),
        ("stages.generation.optimizer.schedule", "cos", "must be one of 'constant', 'linear', 'cosine', 'wsd', got"),
        ("model.image_size", [1, 2, 3], "recipe.model.image_size must have 2 entries, got 3"),
        ("model.kind", "toy_configs", 'kind must look like "package.module:Class"'),
        ("model.kind", "no.such.module:Config", "'no.such.module' cannot be imported"),
        ("model.kind", "toy_configs:ToyModelConfg", r"does not exist. Did you mean ToyModelConfig\?"),
        ("model.kind", "toy_configs:NOT_A_CONFIG", "which is no dataclass"),
        ("model.kind", "os:system", "which is no dataclass"),
        ("model.backbone.kind", "toy_configs:FolderSource", "must be one of toy_configs:OwnBackbone, toy_configs:Hub"),
        ("model.backbone", {"dim": 3}, 'model.backbone needs a "kind"'),
        ("model.backbone", 7, "model.backbone fits no allowed type"),
        ("data.mine", {"kind": "toy_configs:FolderSource"}, "data.mine lacks the required fields path"),
        ("stages.generation", [], "recipe.stages.generation must be an object with the fields of Stage"),
        ("format_version", 2, "recipe.format_version is 2, but this diptych reads up to 1.*Upgrade"),
    ],
)
def test_json_with_a_mistake_says_where_and_what(path, value, message):
    with pytest.raises(ValueError, match=message):
        recipe_from_dict(edited(path, value))


def test_json_that_is_cut_off_or_no_object():
    with pytest.raises(ValueError, match=r"not valid JSON.*cut off"):
        from_json(to_json(tiny())[:100])
    with pytest.raises(ValueError, match=r"must be a JSON object, got \[1\]"):
        from_json("[1]")


def test_what_json_cannot_hold_is_refused_when_written():
    with pytest.raises(ValueError, match=r"recipe.model.levels\[0\]\[1\] must be finite"):
        to_json(replace(tiny(), model=ToyModelConfig(levels=(("a", float("inf")),))))
    with pytest.raises(ValueError, match=r"recipe.model.levels is a set"):
        to_json(replace(tiny(), model=ToyModelConfig(levels={1})))

    @dataclass(frozen=True)
    class Local:
        x: int = 0

    with pytest.raises(ValueError, match="define it at the top level of a module"):
        to_json(replace(tiny(), data={"scenes": Local(), "mine": Local()}))


# --- presets


def test_load_preset_takes_any_importable_function():
    assert load_preset("toy_configs:tiny") == tiny()
    assert load_preset("toy_configs:variant") == variant()
    assert set(presets_of(toy_configs)) == {"tiny", "variant", "broken"}


def test_load_preset_takes_a_recipe_file(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(to_json(variant()), encoding="utf-8")
    assert load_preset(str(path)) == variant()
    with pytest.raises(FileNotFoundError, match="no recipe file at"):
        load_preset(str(tmp_path / "none.json"))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"recipe.json: the recipe is not valid JSON"):
        load_preset(str(path))


def test_unknown_names_are_answered_with_the_nearest_known(monkeypatch):
    monkeypatch.setattr("diptych.train.presets.recipe_names", lambda: ["blip3o", "janus"])
    with pytest.raises(ValueError, match=r"unknown recipe 'blip3'. Did you mean blip3o\?.*module:function"):
        load_preset("blip3:tiny")
    with pytest.raises(ValueError, match=r"unknown recipe 'not a name'. Known: blip3o, janus"):
        load_preset("not a name")
    with pytest.raises(ValueError, match=r"has no preset 'tny'. Did you mean toy_configs:tiny"):
        load_preset("toy_configs:tny")
    with pytest.raises(ValueError, match=r"the recipe 'toy_configs' needs a preset."):
        load_preset("toy_configs")
    with pytest.raises(ValueError, match="toy_configs:broken must return a Recipe, got dict"):
        load_preset("toy_configs:broken")


def test_an_import_error_inside_a_recipe_file_is_not_called_unknown(tmp_path, monkeypatch):
    (tmp_path / "needs_missing.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        load_preset("needs_missing:tiny")


# --- overrides


def test_override_sets_fields_of_every_depth_and_nothing_else():
    argv = ["--stages.generation.num-steps", "50", "--data.scenes.num-scenes", "1000", "--seed", "3"]
    recipe = override(tiny(), [*argv, "--stages.generation.optimizer.clip-norm", "None", "--precision=bfloat16"])
    generation = tiny().stages["generation"]
    expected = replace(
        tiny(),
        seed=3,
        precision="bfloat16",
        data={**tiny().data, "scenes": NumbersSource(num_scenes=1000)},
        stages={
            **tiny().stages,
            "generation": replace(generation, num_steps=50, optimizer=replace(generation.optimizer, clip_norm=None)),
        },
    )
    assert recipe == expected
    assert override(tiny(), []) == tiny()


def test_override_of_tuples_dicts_and_mixtures():
    argv = [
        "--stages.generation.trainable",
        "head",
        "--stages.generation.mix.mine",
        "0.25",
        "--model.image-size",
        "64",
        "48",
    ]
    recipe = override(tiny(), [*argv, "--stages.generation.optimizer.lr-multipliers.backbone", "0.5"])
    assert recipe.stages["generation"].trainable == ("head",)
    assert recipe.stages["generation"].mix == {"scenes": 0.5, "mine": 0.25}
    assert recipe.stages["generation"].optimizer.lr_multipliers == {"backbone": 0.5}
    assert recipe.model.image_size == (64, 48)


def test_override_replaces_a_node_by_json(tmp_path):
    emoji = '{"kind": "toy_configs:FolderSource", "path": "emoji"}'
    (tmp_path / "backbone.json").write_text('{"kind": "toy_configs:HubBackbone", "hub_id": "x/y"}')
    argv = ["--data.emoji", emoji, "--stages.generation.mix", '{"emoji": 1.0}', "--seed", "9"]
    recipe = override(tiny(), [*argv, "--model.encoder={}", "--model.backbone", f"@{tmp_path}/backbone.json"])
    assert recipe.data["emoji"] == FolderSource(path="emoji")
    assert recipe.stages["generation"].mix == {"emoji": 1.0}
    assert recipe.model.encoder == OwnBackbone()
    assert recipe.model.backbone == HubBackbone(hub_id="x/y")
    assert recipe.seed == 9
    assert override(recipe, ["--data.emoji.path", "{braces}"]).data["emoji"].path == "{braces}"
    only_mine = ["--stages.alignment.mix", '{"mine": 1}', "--stages.generation.mix", '{"mine": 1}']
    only = override(tiny(), ["--data", '{"mine": {"kind": "toy_configs:FolderSource", "path": "p"}}', *only_mine])
    assert list(only.data) == ["mine"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--stages.generation.num-stps", "3"],
            r"unknown field --stages.generation.num-stps. Did you mean --stages.gen",
        ),
        (["--num-steps", "3"], "Did you mean --stages.alignment.num-steps or --stages.generation.num-steps"),
        (["--stages.generation.num-steps", "-3"], "stage.num_steps must be a finite number of at least 1, got -3"),
        (
            ["--stages.generation.num-steps", "many"],
            "Error parsing --stages.generation.num-steps: invalid literal.*many",
        ),
        (["--precision", "float16"], "invalid choice 'float16' for argument '--precision'. Expected one of"),
        (["--seed"], "^Missing value for argument '--seed'"),
        (["--stages.generation.mix", '{"mines": 1}'], r"names the source 'mines'.*Did you mean mine"),
        (["--data.new", '{"path": }'], "--data.new: expected JSON or @file.json"),
        (["--date.new", "{}"], r"--date.new: there is no 'date'. Did you mean data"),
        (["--model.backbone", "@/no/such/file.json"], "expected JSON or @file.json, got '@/no/such/file.json'"),
        (["extra"], "^Unrecognized options: extra$"),
    ],
)
def test_override_mistakes(argv, message):
    with pytest.raises(ValueError, match=message) as error:
        override(tiny(), argv)
    assert "│" not in str(error.value) and str(error.value)


def test_help_lists_every_flag_with_its_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        override(tiny(), ["--help"])
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    flags = list(flag_names(tiny()))
    assert len(flags) > 40
    assert [flag for flag in flags if flag not in text] == ["--model.encoder"]  # None: set by JSON only
    assert "Peak learning rate" in text


def test_recipes_are_light():
    code = (
        "import sys, toy_configs, diptych.train.recipe, diptych.train.presets, diptych.train.serialization, "
        "diptych.train.override\n"
        "recipe = diptych.train.presets.load_preset('toy_configs:tiny')\n"
        "diptych.train.override.override(recipe, ['--seed', '3'])\n"
        "print(sorted({'torch', 'transformers', 'accelerate', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert json.loads(found.stdout.replace("'", '"')) == []


def test_recipe_is_generic_over_the_model_config():
    recipe: Recipe[ToyModelConfig] = tiny()
    assert recipe.num_steps == 12


def test_every_preset_that_ships_survives_json_and_the_flags():
    names = [
        f"{paper}:{preset}"
        for paper in recipe_names()
        for preset in presets_of(import_module(f"diptych.recipes.{paper}"))
    ]
    assert len(names) >= 3 and "blip3o:tiny" in names
    for name in names:
        recipe = load_preset(name)
        assert from_json(to_json(recipe)) == recipe, name
        assert override(recipe, []) == recipe, name
        (stage, *_) = recipe.stages
        changed = override(recipe, [f"--stages.{stage}.num-steps", "7", "--seed", "11"])
        assert changed.stages[stage].num_steps == 7 and changed.seed == 11, name
