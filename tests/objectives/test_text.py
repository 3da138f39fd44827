"""Cross-entropy at target tokens."""

import math

import torch

from diptych.objectives.text import text_term, token_cross_entropy


def test_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, 0.0, 0.0]])
    values = token_cross_entropy(logits, torch.tensor([2, 0]))
    torch.testing.assert_close(values, torch.tensor([math.log(4), math.log(2)]))


def test_the_softmax_is_float32():
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    value = token_cross_entropy(logits, torch.tensor([0]))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.tensor([math.log(1000)]))


def test_term_sums_over_tokens_and_makes_no_other_logits():
    head = torch.nn.Linear(8, 20)
    states = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    target_ids = torch.tensor([0, 3, 19, 4, 4, 7, 1])
    rows = []

    def logits(hidden_states):
        rows.append(len(hidden_states))
        return head(hidden_states)

    term = text_term(states, target_ids, logits)
    log_probabilities = head(states).log_softmax(-1)
    torch.testing.assert_close(term.sum, -log_probabilities[torch.arange(7), target_ids].sum())
    assert term.count.item() == 7 and rows == [7]
    weights = torch.tensor([1.0, 0, 0, 2, 0, 0, 0])
    weighted = text_term(states, target_ids, logits, weights)
    torch.testing.assert_close(weighted.sum, (term.values * weights).sum())


def test_chunks_change_neither_value_nor_gradient():
    head = torch.nn.Linear(8, 20)
    target_ids = torch.randint(20, (11,), generator=torch.Generator().manual_seed(1))
    results, longest = [], []
    for chunk_size in (100, 4):
        states = torch.randn(11, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        rows = []

        def logits(hidden_states, rows=rows):
            rows.append(len(hidden_states))
            return head(hidden_states)

        term = text_term(states, target_ids, logits, chunk_size=chunk_size)
        gradients = torch.autograd.grad(term.sum, (states, head.weight))
        results.append((term.sum.detach(), term.values, *gradients))
        longest.append(max(rows))
    assert longest == [11, 4]
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked)
