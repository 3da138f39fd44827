"""Muon: orthogonal updates, AdamW for the rest, state that saves and resumes, and what it may not be given."""

import copy
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch import nn

from diptych.train.muon import Muon, _owners, orthogonalize
from diptych.train.optimizer import build_optimizer, is_hidden_matrix, load_optimizer_tensors, optimizer_tensors
from diptych.train.recipe import OptimizerConfig, Recipe
from diptych.train.serialization import recipe_from_dict, recipe_to_dict


def toy() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.body = nn.Sequential(nn.Linear(6, 10), nn.SiLU(), nn.Linear(10, 4, bias=False))
    model.head = nn.Module()
    model.head.queries = nn.Parameter(torch.randn(3, 4))
    model.head.embedding = nn.Embedding(5, 4)
    return model


def names(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def fill_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(7, 7), (5, 12), (12, 5)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    made = orthogonalize(matrices)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.25
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    rotated = left.mT @ made @ right.mT  # diagonal in the singular vectors of the input
    torch.testing.assert_close(rotated, torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1)), atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonalize(matrices[1:2])[0], made[1])  # matrices do not mix
    assert not orthogonalize(torch.zeros(1, *shape)).any()


def test_bfloat16_brings_singular_values_to_about_one_too():
    matrices = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(1))
    made, exact = orthogonalize(matrices, torch.bfloat16), orthogonalize(matrices)
    assert made.dtype == torch.float32
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6 and values.max() < 1.3
    assert 0 < (made - exact).norm() / exact.norm() < 0.03
    assert not orthogonalize(torch.zeros(1, 5, 5), torch.bfloat16).any()


def test_matrices_of_a_run_in_bfloat16_are_computed_in_it():
    steps = []
    for dtype in (torch.float32, torch.bfloat16):
        model = toy()
        optimizer = build_optimizer(names(model), OptimizerConfig(name="muon", lr=1e-2), dtype)
        before = model.body[0].weight.detach().clone()
        fill_gradients(model, 2)
        optimizer.step()
        steps.append((model.body[0].weight.detach() - before, model.head.queries.detach().clone()))
    (exact, queries), (rounded, same_queries) = steps
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.03
    assert torch.equal(queries, same_queries)  # AdamW's parameters stay in their own type


def test_which_parameters_are_matrices():
    model = toy()
    assert {name for name, parameter in names(model).items() if is_hidden_matrix(name, parameter)} == {
        "body.0.weight",
        "body.2.weight",
    }


def test_matrices_take_the_stated_step_and_all_else_is_adamw():
    model, other = toy(), toy()
    config = OptimizerConfig(name="muon", lr=1e-2, matrix_lr=0.1, momentum=0.9, weight_decay=0.1)
    muon = build_optimizer(names(model), config)
    adamw = build_optimizer(names(other), OptimizerConfig(lr=1e-2, weight_decay=0.1))
    before = copy.deepcopy(model.state_dict())
    for optimizer, owner in ((muon, model), (adamw, other)):
        fill_gradients(owner, 2)
        optimizer.step()
    for name, parameter in names(model).items():
        if not is_hidden_matrix(name, parameter):
            assert torch.equal(parameter, names(other)[name]), name
            continue
        gradient = parameter.grad
        ahead = 0.1 * gradient * 0.9 + 0.1 * gradient  # momentum starts at zero; Nesterov looks one step ahead
        expected = before[name] * (1 - 0.1 * 0.1)
        rows, cols = parameter.shape
        expected = expected - 0.1 * max(1.0, rows / cols) ** 0.5 * orthogonalize(ahead[None])[0]
        torch.testing.assert_close(parameter.detach(), expected)


def test_state_is_named_and_a_resumed_optimizer_steps_alike():
    config = OptimizerConfig(name="muon", lr=1e-2)
    model = toy()
    optimizer = build_optimizer(names(model), config)
    for seed in (1, 2):
        fill_gradients(model, seed)
        optimizer.step()
    state = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, names(model)).items()}
    assert "momentum_buffer/body.0.weight" in state
    assert "exp_avg/body.0.weight" not in state
    assert "exp_avg/head.queries" in state
    again = copy.deepcopy(model)
    resumed = build_optimizer(names(again), config)
    load_optimizer_tensors(resumed, names(again), state)
    for optimizer_, owner in ((optimizer, model), (resumed, again)):
        fill_gradients(owner, 3)
        optimizer_.step()
    for name, parameter in names(model).items():
        assert torch.equal(parameter, names(again)[name]), name


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"optimizer.matrix_lr must be positive, got 0"):
        OptimizerConfig(matrix_lr=0.0)
    with pytest.raises(ValueError, match=r"optimizer.momentum must lie in \[0, 1\), got 1.0"):
        OptimizerConfig(momentum=1.0)
    with pytest.raises(ValueError, match="takes no closure"):
        Muon([{"params": [nn.Parameter(torch.zeros(2, 2))], "is_matrix": True}]).step(lambda: 0.0)


def test_a_recipe_with_muon_goes_through_json():
    from diptych.recipes.blip3o import small

    recipe: Recipe = small()
    assert {stage.optimizer.name for stage in recipe.stages.values()} == {"muon"}
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


def updated_weights(rank: int, world: int, store: str, results: object) -> None:
    """Two steps of Muon in one of several processes, which have equal gradients."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    model = toy()
    optimizer = build_optimizer(names(model), OptimizerConfig(name="muon", lr=1e-2, matrix_lr=0.1))
    for step in range(2):
        fill_gradients(model, step)
        optimizer.step()
    results.put((rank, {name: parameter.tolist() for name, parameter in names(model).items()}))


@pytest.mark.process
def test_processes_share_the_iteration_and_get_the_updates_of_one(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    updated_weights(0, 1, "", results)
    _, alone = results.get(timeout=60)
    children = [
        context.Process(target=updated_weights, args=(rank, 2, str(tmp_path / "store"), results)) for rank in range(2)
    ]
    for child in children:
        child.start()
    found = dict(results.get(timeout=60) for _ in children)
    for child in children:
        child.join(60)
    assert found[0] == found[1]
    for name, values in alone.items():
        torch.testing.assert_close(torch.tensor(found[0][name]), torch.tensor(values), atol=1e-6, rtol=1e-6)


def test_the_iteration_is_shared_evenly():
    matrices = [torch.empty(8, 8)] * 5 + [torch.empty(16, 8)] * 2
    owners = _owners(matrices, 2)
    work = [512] * 5 + [1024] * 2
    assert {sum(w for w, owner in zip(work, owners, strict=True) if owner == rank) for rank in (0, 1)} == {2048, 2560}
    assert _owners(matrices, 1) == [0] * 7
