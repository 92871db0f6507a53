"""Every probe, run as a user would, selects exactly the heads that were planted for it."""

from __future__ import annotations

from functools import cache

import pytest

import headscope as hs
from headscope import probes
from headscope.data.organisms import KINDS, Organism
from headscope.probes import HeadScores

RANKED = (
    probes.PreviousTokenHeads(),
    probes.DuplicateTokenHeads(),
    probes.InductionHeads(),
    probes.EchoHeads(),
    probes.SinkHeads(),
    probes.SinkTokens(),
    probes.RetrievalHeads(),
)


@cache
def ranked(kind: str) -> tuple[Organism, dict[str, HeadScores]]:
    grown = hs.data.organism(kind, seed=5)
    model = hs.load(grown.model, tokenizer=grown.tokenizer)
    data = {
        "repeats": hs.data.repeats(model, n=12, length=64),
        "texts": hs.data.texts(model, n=14, length=384),
        "needles": grown.needles(n=14, lengths=(256,)),
    }
    return grown, probes.rank_all(RANKED, model, data)


@pytest.mark.parametrize("probe", ["previous", "duplicate", "induction", "echo", "sinks", "sink-tokens", "retrieval"])
@pytest.mark.parametrize("kind", KINDS)
def test_probes_select_exactly_the_planted_heads(kind: str, probe: str) -> None:
    grown, scores = ranked(kind)
    assert set(map(tuple, scores[probe].selected)) == grown.expected[probe]


@pytest.mark.parametrize("kind", KINDS)
def test_sink_tokens_names_the_massive_dimension(kind: str) -> None:
    grown, scores = ranked(kind)
    table = scores["sink-tokens"].details["dimensions"]
    found = table.loc[table["massive"].astype(bool)]
    assert set(found["dimension"]) == {grown.planted_massive["dimension"]}
    assert min(found["layer"]) == 1
