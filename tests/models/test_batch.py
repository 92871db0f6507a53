from __future__ import annotations

import pytest
import torch

from headscope.errors import PromptError
from headscope.models.batch import make_batch
from headscope.models.prompt import Prompt, build_prompt


@pytest.mark.parametrize("side", ["left", "right"])
def test_regions_follow_the_padding(make_tokenizer, side):
    tokenizer = make_tokenizer("byte_level")
    fills = ["code", "the harbour 🙂 is quiet", "7421"]
    prompts = [
        build_prompt(tokenizer, "one {x} two three"[: 17 - n], fills={"x": fill}) for n, fill in enumerate(fills)
    ]
    batch = make_batch(prompts, pad_id=1, side=side)
    assert batch.ids.shape == batch.attention_mask.shape == (3, max(map(len, prompts)))
    for name in ("x", "bos", "last", "all"):
        for row, (prompt, columns) in enumerate(zip(prompts, batch.regions(name), strict=True)):
            assert batch.ids[row, list(columns)].tolist() == [prompt.ids[i] for i in prompt.positions(name)]
    assert batch.attention_mask.sum(-1).tolist() == [len(p) for p in prompts]
    assert torch.equal(batch.ids[batch.attention_mask == 0], torch.ones_like(batch.ids)[batch.attention_mask == 0])
    for row, columns in enumerate(batch.regions("all")):
        assert batch.position_ids[row, list(columns)].tolist() == list(range(len(prompts[row])))
    assert batch.to("cpu").side == side
    assert len(batch) == 3


def test_batches_that_make_no_sense():
    prompt = Prompt.from_ids([1, 2])
    with pytest.raises(PromptError, match="at least one prompt"):
        make_batch([])
    with pytest.raises(PromptError, match="neither 'left' nor 'right'"):
        make_batch([prompt], side="top")
    with pytest.raises(PromptError, match="not str"):
        make_batch(["text"])
    with pytest.raises(PromptError, match="no region 'needle'"):
        make_batch([prompt]).regions("needle")
    assert make_batch([prompt, Prompt.from_ids([3])], pad_id=None).ids.tolist() == [[1, 2], [0, 3]]
