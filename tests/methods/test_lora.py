"""Low-rank adapters: identity at first, all that learns, equal when merged, small on disk, resumed exactly."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import diptych
from diptych.cli.main import explain, main
from diptych.data.sources.scenes import ScenesSource
from diptych.methods.training import build_task
from diptych.models.adapters import adapted_layers, add_adapters, is_adapter
from diptych.models.backbones.transformer import CausalTransformer
from diptych.models.backbones.transformers_lm import TransformersBackbone
from diptych.train.loop import train
from diptych.train.part_configs import LoraConfig
from diptych.train.parts import freeze_all_but, trained_parameters
from diptych.train.recipe import CheckpointConfig, LoggingConfig, OptimizerConfig, Recipe, SamplingConfig, Stage
from diptych.train.serialization import from_json, to_json
from diptych.unified import DrawSettings
from diptych.unified.adapter_files import merge_adapters
from tests.methods.test_blip3o_next import TINY as NEXT
from tests.tiny_models import TINY, tiny_model

pytest.importorskip("peft")

QUIET = Console(quiet=True)
BOTH = LoraConfig(parts=("backbone", "denoiser"), rank=3, alpha=6.0)
QWEN = {"model_type": "qwen2", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip


def recipe(base, **changes):
    """A short training with adapters on what was saved in ``base``."""
    stage = Stage(
        trainable=("backbone", "image_head"),
        mix={"draw": 1.0, "ask": 1.0},
        objectives={"flow": 1.0, "text": 1.0},
        num_steps=6,
        batch_size=4,
        optimizer=OptimizerConfig(lr=1e-2, ema_decay=0.5),
    )
    start = dict.fromkeys(("autoencoder", "connector", "backbone", "image_head"), str(base))
    return Recipe(
        name="tests:lora",
        model=replace(TINY, start_from=start, lora=replace(BOTH, dropout=0.1), **changes),
        data={"draw": ScenesSource(num_scenes=32), "ask": ScenesSource(task="question_answering", num_scenes=32)},
        stages={"tune": stage},
        sampling=SamplingConfig(num_steps=3, guidance_scale=2.0),
        checkpoints=CheckpointConfig(every_steps=2, keep=5),
        logging=LoggingConfig(every_steps=2, sample_every=-1),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_model(1).save(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A finished run, and its model as it was trained, adapters apart from the weights."""
    run = tmp_path_factory.mktemp("run") / "run"
    task = build_task(recipe(base), run)
    result = train(task, recipe(base), run, console=QUIET, device="cpu")
    assert result.finished
    return run, task.model.eval()


def condition(model):
    return torch.stack(model.condition([(diptych.Text("a red circle"),)], model.images.size))


def open_adapters(part, seed=0):
    """Adapters that have learnt something."""
    torch.manual_seed(seed)
    for _, layer in adapted_layers(part):
        layer.lora_B["default"].weight.data.normal_(std=0.2)


@pytest.mark.parametrize("kind", ["own", "transformers", "denoiser"])
@torch.no_grad()
def test_adapters_are_the_identity_at_first_and_change_every_layer_later(kind):
    model = tiny_model()
    torch.manual_seed(2)
    if kind == "denoiser":
        part, shape = model.image_head.denoiser, (2, 8, 4, 4)
        given = (torch.randn(shape), torch.tensor([0.2, 0.7]), torch.randn(2, 4, 32))

        def run(part):
            return part(*given), part(given[0], given[1], part.encode_condition(given[2]))
    else:
        part = TransformersBackbone(config=QWEN).eval() if kind == "transformers" else model.backbone
        embedded, positions = torch.randn(2, 5, 32), torch.arange(5).expand(2, -1)

        def run(part):
            states = part(embedded, positions).hidden_states
            return states, part.logits(states)

    before = run(part)
    layers = add_adapters(part, rank=2, alpha=4.0, where="the part")
    assert len(layers) == len(list(adapted_layers(part))) >= 8
    assert not any(name.endswith("head") for name in layers)
    for one, other in zip(before, run(part), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    open_adapters(part)
    for one, other in zip(before, run(part), strict=True):
        assert (one - other).abs().max() > 1e-2
    with pytest.raises(ValueError, match="the part has adapters already"):
        add_adapters(part, rank=2, alpha=4.0, where="the part")


def test_the_head_of_a_backbone_is_left_alone():
    part = CausalTransformer(vocab_size=20, dim=16, num_layers=1, num_heads=2, num_kv_heads=2, ffn_dim=32,
                             tie_embeddings=False)  # fmt: skip
    assert all("head" not in name for name in add_adapters(part, rank=1, alpha=1.0, where="the backbone"))


def test_a_stage_trains_the_adapters_of_its_parts_alone():
    model = tiny_model(config=replace(TINY, lora=BOTH))
    freeze_all_but(model, {"backbone", "image_head", "connector"})
    names = set(trained_parameters(model))
    own = {name for name in names if not name.startswith("connector.")}
    assert all(is_adapter(name) for name in own) and own < names
    assert {name.split(".")[0] for name in own} == {"backbone", "image_head"}
    freeze_all_but(model, {"connector"})
    assert all(name.startswith("connector.") for name in trained_parameters(model))


def test_only_adapters_change_in_a_training(base, trained):
    run, model = trained
    before, after = tiny_model(1).state_dict(), model.state_dict()
    plain = {name.replace(".base_layer.", "."): value for name, value in after.items() if not is_adapter(name)}
    assert plain.keys() == before.keys()
    assert all(torch.equal(plain[name], before[name]) for name in before)
    ups = [value for name, value in after.items() if ".lora_B." in name]
    assert len(ups) > 20 and sum(bool(up.abs().max() > 0) for up in ups) > 0.9 * len(ups)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["trained_parameters"]["tune"] == sum(v.numel() for name, v in after.items() if is_adapter(name))
    state = load_file(run / "checkpoints" / "step-000006" / "state" / "weights.safetensors")
    assert state and all(is_adapter(name) for name in state)


def test_the_saved_model_is_merged_and_equals_the_adapted_one(base, trained):
    run, adapted = trained
    merged = diptych.load(run, device="cpu")
    assert not any(is_adapter(name) for name in merged.state_dict())
    torch.testing.assert_close(condition(merged), condition(adapted), rtol=1e-5, atol=1e-5)
    original = diptych.load(base, device="cpu")
    assert (condition(merged) - condition(original)).abs().max() > 1e-2
    pictures = [np.asarray(m.generate_image("a red circle")[0], int) for m in (merged, adapted, original)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1 < np.abs(pictures[0] - pictures[2]).max()


def test_adapters_alone_are_small_and_go_onto_their_base(base, trained, tmp_path, capsys):
    run, _ = trained
    adapters = run / "checkpoints" / "step-000006" / "model" / "adapters"
    size = sum(file.stat().st_size for file in adapters.iterdir())
    assert size < 0.4 * sum(file.stat().st_size for file in base.rglob("*.safetensors"))
    merged = diptych.load(run, device="cpu")
    for given in (adapters, run):
        onto = diptych.load(base, device="cpu", adapters=given)
        for name, value in merged.state_dict().items():
            assert torch.equal(onto.state_dict()[name], value)
    assert main(["merge", str(base), str(run), str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "adapters of 40 layers" in capsys.readouterr().out
    again = diptych.load(tmp_path / "out", device="cpu")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in merged.state_dict().items())


def test_a_merged_folder_loads_without_peft(trained):
    run, _ = trained
    program = "import sys; sys.modules['peft'] = None\nimport diptych\nm = diptych.load(sys.argv[1], device='cpu')\n"
    program += "print(len(m.generate_image('a red circle')))"
    done = subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_resumed_training_goes_on_bit_equal(base, trained, tmp_path):
    class Stop(Exception):
        pass

    whole, _ = trained
    cut = tmp_path / "cut"
    task = build_task(recipe(base), cut)
    own, calls = task.objectives["flow"], []

    def fails_later(*given):
        calls.append(1)
        if len(calls) == 6:
            raise Stop
        return own(*given)

    broken = replace(task, objectives={"flow": fails_later, "text": fails_later})
    with pytest.raises(Stop):
        train(broken, recipe(base), cut, console=QUIET, device="cpu")
    result = train(build_task(recipe(base), cut), recipe(base), cut, resume=True, console=QUIET, device="cpu")
    assert result.finished
    files = [f"state/{name}.safetensors" for name in ("weights", "optimizer")] + ["model/backbone/model.safetensors"]
    for file in files:
        one, other = (load_file(run / "checkpoints" / "step-000006" / file) if (
            run / "checkpoints" / "step-000006" / file).exists() else {} for run in (whole, cut))  # fmt: skip
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_another_base_is_refused_when_resuming(base, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "model"
    tiny_model(1).save(folder)
    short = replace(recipe(folder), stages={"tune": replace(recipe(folder).stages["tune"], num_steps=2)})
    train(build_task(short, run), short, run, console=QUIET, device="cpu")
    other = tiny_model(1)
    other.backbone = tiny_model(5).backbone
    other.save(folder)
    with pytest.raises(ValueError, match="the frozen part 'backbone' is not the one this run began with"):
        train(build_task(short, run), short, run, resume=True, console=QUIET, device="cpu")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_recipe_with_adapters_round_trips_and_bad_values_are_refused(base):
    assert from_json(to_json(recipe(base))) == recipe(base)
    with pytest.raises(ValueError, match=r"lora\.rank must be at least 1, got 0\. For no adapters leave lora\.parts"):
        LoraConfig(rank=0)
    with pytest.raises(ValueError, match=r"lora\.dropout must lie in \[0, 1\), got 1\.0"):
        LoraConfig(dropout=1.0)
    with pytest.raises(ValueError, match=r"lora\.alpha must be a positive number, got 0\.0"):
        LoraConfig(alpha=0.0)
    with pytest.raises(ValueError, match=r"lora\.layers is empty"):
        LoraConfig(layers=())


def test_adapters_of_blip3o_next_learn_alone_and_go_onto_a_saved_model(tmp_path):
    """On the model that writes image tokens: only adapters get gradients, and merged they draw the same."""
    torch.manual_seed(0)
    NEXT.build().save(tmp_path / "base")
    start = dict.fromkeys(("backbone", "image_head", "encoder", "autoencoder", "connector"), str(tmp_path / "base"))
    model = replace(NEXT, lora=BOTH, start_from=start, frozen_denoiser=True).build()
    source = ScenesSource(num_scenes=4).build()
    batch = model.collator()([source.example(i, 0) for i in range(2)], [0, 1])
    freeze_all_but(model, {"backbone", "image_head"})
    names = trained_parameters(model)
    assert all(is_adapter(name) for name in names) and {name.split(".")[0] for name in names} == {
        "backbone", "image_head"
    }  # fmt: skip
    open_adapters(model.backbone)
    open_adapters(model.image_head.denoiser)
    joint = replace(NEXT, lora=BOTH).objectives()["flow"]
    terms = joint(model, batch, torch.Generator().manual_seed(0))
    sum(term.sum for term in terms.values()).backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in names.values())
    model.eval()
    model.draw_settings = DrawSettings(num_steps=2)
    model.save(tmp_path / "tuned")
    merged = diptych.load(tmp_path / "tuned", device="cpu")
    assert not any(is_adapter(name) for name, _ in merged.named_parameters())
    drawn, again = (each.generate_image("a red circle", seed=1)[0] for each in (model, merged))
    assert np.abs(np.asarray(drawn, int) - np.asarray(again, int)).max() <= 1
    with pytest.raises(ValueError, match=r"image_head of .* has num_codes 12, the recipe's has 13"):
        codes = replace(NEXT.image_tokenizer, num_codes=13)
        replace(NEXT, image_tokenizer=codes, start_from={"image_head": str(tmp_path / "base")}).build()


def test_layers_that_do_not_exist_are_refused_with_those_that_do():
    lora = replace(BOTH, layers=("qkv", "q_proj"))
    with pytest.raises(ValueError, match=r"no linear layer of the backbone matches 'q_proj'.*end in: .*qkv"):
        replace(TINY, lora=lora).build()
    chosen = replace(TINY, lora=LoraConfig(parts=("backbone",), rank=1, layers=("blocks.0.*", "qkv"))).build()
    names = {name for name, _ in adapted_layers(chosen.backbone)}
    assert names == {"blocks.1.attention.qkv", *(n for n in names if n.startswith("blocks.0."))} and len(names) > 4


def test_adapters_that_no_stage_trains_are_refused(base, tmp_path):
    own = recipe(base)
    only = replace(own, stages={"tune": replace(own.stages["tune"], trainable=("backbone",))})
    with pytest.raises(
        ValueError, match=r"adapters on the image_head, but no stage trains it.*stages\.tune\.trainable"
    ):
        build_task(only, tmp_path)


def test_missing_peft_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'diptych\[peft\]'") as error:
        add_adapters(torch.nn.Sequential(torch.nn.Linear(2, 2)), rank=1, alpha=1.0, where="the part")
    assert explain(error.value).endswith("pip install 'diptych[peft]'")


def test_adapters_of_another_model_are_refused_and_change_nothing(base, trained, tmp_path):
    adapters = trained[0] / "checkpoints" / "step-000006" / "model" / "adapters"
    other = tiny_model(config=replace(TINY, backbone=replace(TINY.backbone, ffn_dim=96)))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"the adapter of backbone\.blocks\.0\.feed_forward.* has the shapes \(64, 3\)"
    ):
        merge_adapters(other, adapters)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())
    shallow = tiny_model(config=replace(TINY, backbone=replace(TINY.backbone, num_layers=1)))
    with pytest.raises(
        ValueError, match=r"adapts the layer backbone\.blocks\.1\.attention\.qkv, which this model does"
    ):
        merge_adapters(shallow, adapters)
    with pytest.raises(FileNotFoundError, match=r"holds no adapters: there is no adapters\.json"):
        merge_adapters(other, base)
    index = json.loads((adapters / "adapters.json").read_text())
    (tmp_path / "adapters.json").write_text(json.dumps({**index, "format_version": 9}))
    with pytest.raises(ValueError, match=r"has format version 9; diptych .* reads up to 1"):
        merge_adapters(other, tmp_path)
    (tmp_path / "adapters.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"adapters\.safetensors is damaged or missing"):
        merge_adapters(other, tmp_path)
    tensors = load_file(adapters / "adapters.safetensors")
    save_file({name: value for name, value in tensors.items() if "attention.qkv.up" not in name},
              tmp_path / "adapters.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match=r"lacks the adapter of backbone\.blocks\.0\.attention\.qkv"):
        merge_adapters(tiny_model(), tmp_path)
