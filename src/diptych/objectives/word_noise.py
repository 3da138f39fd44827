"""Word noise: what was written so far is partly replaced while the next word is learnt.

A model that reads a picture word by word can also guess a word from those before it, and a small one learns that first:
which things stand together in training. Where they stand together otherwise, it then reads what is not there. Word
dropout (arXiv 1511.06349, section 3.1) takes the guess away; here any token of the vocabulary stands in, not one of its
own.
"""

from dataclasses import replace

import torch
from torch import Tensor

from diptych.data.batch import Batch
from diptych.objectives.randomness import uniform_from_seeds


def with_word_noise(batch: Batch, share: float, vocab_size: int) -> Batch:
    """The batch in which a share of the target tokens are others where they are read; the targets stay.

    Examples that draw keep theirs, from which the picture is drawn. What is replaced follows from each example's seed.

    Args:
        share: probability of a token, 0 to 1.
    """
    examples = batch.target_examples
    order = _order_in_example(examples)
    longest = int(order.max()) + 1 if len(order) else 0
    chances = uniform_from_seeds(batch.example_seeds, (longest, 2), "word_noise")[examples, order]
    replaced = chances[:, 0] < share
    for group in batch.outputs:
        replaced &= ~torch.isin(examples, group.example_ids)
    token_ids = batch.token_ids.flatten().clone()
    # A target is what its slot predicts, so it is read in the next one.
    token_ids[batch.target_slots[replaced] + 1] = (chances[replaced, 1] * vocab_size).to(token_ids.dtype)
    return replace(batch, token_ids=token_ids.view(batch.token_ids.shape))


def _order_in_example(examples: Tensor) -> Tensor:
    """How many targets of the same example stand before each; targets of an example are neighbours."""
    index = torch.arange(len(examples), device=examples.device)
    is_first = torch.ones_like(examples, dtype=torch.bool)
    is_first[1:] = examples[1:] != examples[:-1]
    return index - torch.where(is_first, index, 0).cummax(0).values
