"""The arithmetic of published code, written out on transformers' eager attention, and pastalib where it is installed.

pastalib is no dependency: its wheel puts packages named ``evaluation`` and ``scripts`` beside ours. Its test runs after
``pip install --no-deps --target FOLDER pastalib`` with FOLDER on PYTHONPATH; it needs nothing that is not here already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import headscope as hs
from headscope.interventions.act import ACT
from headscope.interventions.pasta import PASTA
from headscope.interventions.var import VAR
from headscope.interventions.zerotuning import ZeroTuning
from headscope.models.tiny import tiny

HEADS = ((0, 1), (1, 0), (1, 2))
BY_LAYER = {0: [1], 1: [0, 2]}
IDS = list(range(5, 29))
SPAN, TAIL = (4, 9), (15, 20)
MORE = [7, 8, 60, 61]
REGIONS = {"span": list(range(*SPAN)), "tail": list(range(*TAIL))}


def ours(**options: Any) -> Any:
    return hs.load(tiny("llama", **options), validate=False)


def theirs(**options: Any) -> Any:
    """The same weights under the eager attention of transformers."""
    hf = tiny("llama", **options)
    hf.set_attn_implementation("eager")
    return hf


def prompt(model: Any) -> Any:
    return model.prompt_from_ids(IDS, REGIONS)


@contextlib.contextmanager
def masked(hf: Any, edit: Any) -> Iterator[None]:
    """Let ``edit`` change the additive mask (B, H, Tq, Tk) in front of each attention module, of each layer in turn."""

    def hook(layer: int) -> Any:
        def change(module: Any, args: Any, kwargs: Any) -> Any:
            heads = hf.config.num_attention_heads
            mask = kwargs["attention_mask"]
            whole = mask.expand(mask.shape[0], heads, *mask.shape[2:]).clone()
            edit(layer, whole)
            return args, {**kwargs, "attention_mask": whole}

        return change

    handles = [
        block.self_attn.register_forward_pre_hook(hook(layer), with_kwargs=True)
        for layer, block in enumerate(hf.model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def steered(hf: Any, edit: Any) -> Tensor:
    """Return logits of the prompt, and of each forced token after it, read from the cache: (T + 4, V)."""
    with masked(hf, edit), torch.no_grad():
        out = hf(input_ids=torch.tensor([IDS]), use_cache=True)
        found = [out.logits[0]]
        for token in MORE:
            out = hf(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits[0])
    return torch.cat(found)


def published_pasta(alpha: float, mode: str, spans: Sequence[tuple[int, int]]) -> Any:
    """Additive masks of PASTA as its code makes them: n spans add up."""

    def edit(layer: int, mask: Tensor) -> None:
        constant = torch.tensor(alpha).log()
        for head in BY_LAYER[layer]:
            for start, end in spans:
                if mode == "include":
                    mask[:, head, :, start:end] += constant
                elif mode == "exclude":
                    mask[:, head, :, :start] += constant
                    mask[:, head, :, end : len(IDS)] += constant
                else:
                    mask[:, head, :, : len(IDS)] += constant
            if mode == "include":
                mask[:, head, :, : len(IDS)] -= constant

    return edit


@pytest.mark.parametrize(
    ("mode", "alpha"),
    [
        ("exclude", 0.01),
        ("exclude", 0.5),
        ("include", 100.0),
        ("include", 3.0),
        ("generation", 0.01),
        ("generation", 4.0),
    ],
)
def test_pasta_is_its_additive_mask(mode: Any, alpha: float) -> None:
    model = ours()
    region = {} if mode == "generation" else {"region": "span"}
    with model.edited(PASTA(heads=HEADS, alpha=alpha, mode=mode, **region)):
        read = model.run(prompt(model)).logits[0]
        steps = model.trace(prompt(model), teacher=[*MORE, 1]).logits[0]
    expected = steered(theirs(), published_pasta(alpha, mode, [SPAN]))
    assert (read - expected[: len(IDS)]).abs().max() < 5e-5
    assert (steps - expected[len(IDS) - 1 :]).abs().max() < 5e-5
    plain = steered(theirs(), lambda layer, mask: None)
    assert (expected - plain).abs().max() > 1e-3


def test_pasta_include_is_exclude_turned_round() -> None:
    """Both leave the span a hundred times the rest of the prompt; they differ in what is generated."""
    model = ours()
    found = []
    for mode, alpha in (("exclude", 0.01), ("include", 100.0)):
        with model.edited(PASTA(heads=HEADS, region="span", alpha=alpha, mode=mode)):
            found.append(model.trace(prompt(model), teacher=[*MORE, 1]).logits[0])
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_pasta_with_two_spans_is_not_the_published_sum() -> None:
    """Published: 2 log alpha outside the spans and log alpha inside. Ours: log alpha outside their union, 0 inside.

    In the prompt that is a constant of the row, which the softmax forgets. It shows once there are tokens after the
    prompt: the published code then turns away from the spans too, in favour of what is generated.
    """
    model = ours()
    with model.edited(PASTA(heads=HEADS, region=("span", "tail"), alpha=0.1)):
        read = model.run(prompt(model)).logits[0]
        steps = model.trace(prompt(model), teacher=[*MORE, 1]).logits[0]
    found = torch.cat([read, steps[1:]])

    def union(layer: int, mask: Tensor) -> None:
        outside = [k for k in range(len(IDS)) if not (SPAN[0] <= k < SPAN[1] or TAIL[0] <= k < TAIL[1])]
        for head in BY_LAYER[layer]:
            mask[:, head][..., outside] += torch.tensor(0.1).log()

    summed = steered(theirs(), published_pasta(0.1, "exclude", [SPAN, TAIL]))
    assert (found - steered(theirs(), union)).abs().max() < 5e-5
    assert (found - summed)[: len(IDS)].abs().max() < 5e-5
    assert (found - summed)[len(IDS) :].abs().max() > 1e-2


@pytest.mark.parametrize(("mode", "alpha"), [("exclude", 0.01), ("include", 100.0), ("generation", 0.01)])
def test_pastalib_itself(mode: Any, alpha: float) -> None:
    """Its hooks on the eager Llama of today's transformers, with one span: what it was made for."""
    pastalib = pytest.importorskip("pastalib.pasta", reason="pastalib is not installed, see the top of the file")
    hf = theirs()
    steerer = pastalib.PASTA(hf, None, head_config=BY_LAYER, alpha=alpha, scale_position=mode)
    handles = []
    for layer, heads in BY_LAYER.items():

        def hook(module: Any, args: Any, kwargs: Any, heads: Any = heads) -> Any:
            args, kwargs = steerer.edit_multisection_attention(
                module, args, kwargs, head_idx=heads, token_ranges=[torch.tensor([SPAN])], input_len=len(IDS)
            )
            mask = kwargs["attention_mask"].clone()  # without the size that it pretends to have
            return args, {**kwargs, "attention_mask": mask}

        handles.append(hf.model.layers[layer].self_attn.register_forward_pre_hook(hook, with_kwargs=True))
    with torch.no_grad():
        expected = hf(input_ids=torch.tensor([IDS])).logits[0]
    model = ours()
    region = {} if mode == "generation" else {"region": "span"}
    with model.edited(PASTA(heads=HEADS, alpha=alpha, mode=mode, **region)):
        read = model.run(prompt(model)).logits[0]
    assert (read - expected).abs().max() < 5e-5


# -- formulas on whole patterns --------------------------------------------------------------------------------------


def patterns(layer: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the eager pattern (H, T, T) of a layer, and the layer's input (T, D)."""
    with torch.no_grad():
        out = theirs(**options)(input_ids=torch.tensor([IDS]), output_attentions=True, output_hidden_states=True)
    return out.attentions[layer][0].double(), out.hidden_states[layer][0].double()


def edited(method: Any, layer: int, **options: Any) -> Tensor:
    """Return the rows (H, T, T) of the first layer that the method edits."""
    model = ours(**options)
    with model.edited(method):
        rows = model.run(prompt(model), [hs.Rows(queries="all", layers=[layer])])["rows"].values
    return torch.from_numpy(rows[0, 0]).double()


ALL = [(0, head) for head in range(4)]


@pytest.mark.parametrize("gamma", [0.3, 1.5, 4.0])
def test_zerotuning_on_eager_patterns(gamma: float) -> None:
    a, _ = patterns(0)
    expected = a.clone()
    expected[:, :, 0] *= gamma
    expected /= expected.sum(-1, keepdim=True)
    assert (edited(ZeroTuning(heads=ALL, gamma=gamma), 0) - expected).abs().max() < 2e-6
    assert (expected[..., 0] - gamma * a[..., 0] / ((gamma - 1) * a[..., 0] + 1)).abs().max() < 1e-6


@pytest.mark.parametrize(("threshold", "beta"), [(0.1, 0.4), (0.05, 0.0), (0.02, 0.4), (0.04, 0.9)])
def test_act_on_eager_patterns(threshold: float, beta: float) -> None:
    """Column means over the rows that see a key, the first sink left out, freed mass in proportion, [0, 0] set to 1."""
    a, _ = patterns(0)
    length, expected, touched = len(IDS), a.clone(), 0
    score = a.sum(1) / (length - torch.arange(length))
    for head in range(len(a)):
        sinks = torch.nonzero(score[head] > threshold).flatten()[1:]
        touched += len(sinks)
        others = torch.ones(length, dtype=torch.bool)
        others[sinks] = False
        freed = (1 - beta) * a[head][:, sinks].sum(-1, keepdim=True)
        expected[head][:, sinks] *= beta
        given = a[head] * others
        expected[head] += freed * given / given.sum(-1, keepdim=True)
        expected[head, 0, 0] = 1
    assert touched
    assert (edited(ACT(heads=ALL, threshold=threshold, beta=beta), 0) - expected).abs().max() < 2e-6


def test_act_keeps_a_row_that_has_only_sinks() -> None:
    """The published code forces the one entry [0, 0] to 1; here every row that can give to no key keeps its attention.

    In full attention that is the first row alone, where both say 1. Rows of a sliding window can be others.
    """
    a, _ = patterns(0)
    found = edited(ACT(heads=ALL, threshold=1e-6, beta=0.2), 0)
    assert (found[:, 0, 0] == 1).all()
    assert (found.sum(-1) - 1).abs().max() < 1e-6
    expected = 0.2 * a
    expected[:, :, 0] = 1 - 0.2 * (1 - a[:, :, 0])
    assert (found - expected).abs().max() < 2e-6


@pytest.mark.parametrize(("p", "rho", "summ"), [(0.6, 0.5, 0.2), (0.0, 1.0, 0.0), (0.3, 0.7, 0.1)])
def test_var_on_eager_patterns(p: float, rho: float, summ: float) -> None:
    """As published, with the names of its code: p is what a sink keeps, rho the largest share on sinks."""
    layer, deep = 2, {"num_hidden_layers": 4}
    a, x = patterns(layer, **deep)
    dimensions, tau = [0, 1, 2], 1.3
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))
    is_sink = x[:, dimensions].abs().amax(-1) > tau
    image = torch.zeros(len(IDS), dtype=torch.bool)
    image[slice(*SPAN)] = True
    inside, outside, others = is_sink & image, is_sink & ~image, image & ~is_sink
    assert inside.any()
    assert others.any()
    total = a[..., image].sum(-1)
    portion = a[..., inside].sum(-1) / (total + 1e-6 * image.sum())
    chosen = (portion <= rho) & (total >= summ) & (torch.arange(len(IDS)) >= SPAN[1])
    assert chosen.any()
    assert not chosen[:, SPAN[1] :].all() or summ == 0
    freed = (1 - p) * (a[..., inside].sum(-1) + a[..., outside].sum(-1))
    moved = a.clone()
    moved[..., is_sink] *= p
    share = a * others / (a * others).sum(-1, keepdim=True).clamp(min=1e-30)
    expected = torch.where(chosen[..., None], moved + freed[..., None] * share, a)
    method = VAR(
        dimensions=tuple(dimensions),
        region="span",
        heads=[(layer, head) for head in range(4)],
        keep_fraction=p,
        max_sink_portion=rho,
        min_total=summ,
        tau=tau,
    )
    assert (edited(method, layer, **deep) - expected).abs().max() < 2e-6
