"""A loaded model: prompts in, labelled statistics out."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from headscope.attention.edits import Edit
from headscope.attention.engine import active
from headscope.attention.requests import Request
from headscope.attention.result import Run, Trace
from headscope.attention.session import Session
from headscope.attention.sites import Site, Sites
from headscope.errors import PromptError
from headscope.models.batch import Batch, Side, make_batch
from headscope.models.forward import Inputs, Logits, prepare, run
from headscope.models.generation import generate, trace
from headscope.models.prompt import Prompt, build_prompt
from headscope.models.spec import ModelSpec
from headscope.models.template import Fill
from headscope.models.truncation import Truncate


@runtime_checkable
class Editor(Protocol):
    """What is no edit itself, but knows the edits of a model that it consists of: a method of intervention."""

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return the edits, in order."""


class Model:
    """A transformers model with the headscope attention function in every layer.

    Made by ``headscope.load``.

    Attributes
    ----------
    hf
        The transformers model.
    tokenizer
        Its fast tokenizer, or None.
    spec
        What it is made of.
    name, source, revision
        The name it was asked for by, where it came from, and which revision.
    """

    def __init__(
        self,
        *,
        hf: Any,
        tokenizer: Any,
        spec: ModelSpec,
        source: str,
        name: str,
        revision: str | None = None,
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.spec = spec
        self.source = source
        self.name = name
        self.revision = revision
        self.edits: tuple[Edit, ...] = ()

    def __repr__(self) -> str:
        s = self.spec
        return f"Model({self.name!r}: {s.family}, {s.n_layers} layers × {s.n_heads} heads, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return torch.device(self.hf.device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return torch.empty(0, dtype=self.hf.dtype).dtype

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of all weights, as they are when first asked for."""
        from headscope.models.fingerprint import fingerprint

        return fingerprint(self.hf)

    @cached_property
    def sites(self) -> Sites:
        """The model's attention modules."""
        find = self.hf.get_submodule
        sites = [
            Site(
                stack=kind,
                layer=layer.index,
                heads=layer.heads,
                kv_heads=layer.kv_heads,
                attention=find(layer.attn),
                output=find(layer.o_proj),
                mlp=find(layer.mlp_act) if layer.mlp_act else None,
                block=find(layer.block),
            )
            for kind, stack in self.spec.stacks.items()
            for layer in stack.layers
            if layer.attention != "linear"
        ]
        return Sites(sites, self.spec.default_stack)

    # -- prompts -----------------------------------------------------------------------------------------------

    def prompt(
        self,
        template: str,
        *,
        chat: bool = False,
        system: str | None = None,
        max_length: int | None = None,
        truncate: Truncate | None = None,
        add_special_tokens: bool = True,
        **fills: Fill,
    ) -> Prompt:
        """Return a prompt whose ``{name}`` places are filled and remembered as regions.

        See ``headscope.models.prompt.build_prompt``; the model's context is the limit.
        """
        return build_prompt(
            self._need_tokenizer(),
            template,
            fills=fills,
            chat=chat,
            system=system,
            max_length=max_length,
            truncate=truncate,
            add_special_tokens=add_special_tokens,
            n_ctx=self.spec.n_ctx,
        )

    def prompt_from_ids(self, ids: Iterable[int], regions: Mapping[str, Iterable[int]] | None = None) -> Prompt:
        """Return a prompt made of token ids, with the token positions of each region."""
        return Prompt.from_ids(ids, regions, self.tokenizer, n_ctx=self.spec.n_ctx)

    def batch(self, prompts: Sequence[Prompt | str], side: Side = "left") -> Batch:
        """Pad prompts into one batch."""
        made = [p if isinstance(p, Prompt) else Prompt.from_text(self._need_tokenizer(), p) for p in prompts]
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return make_batch(made, pad, side)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise PromptError(f"{self.name} came without a tokenizer: pass token ids, as Prompt.from_ids([…]).")
        return self.tokenizer

    # -- running -----------------------------------------------------------------------------------------------

    def run(
        self,
        prompt: Inputs,
        capture: Sequence[Request] = (),
        *,
        logits: Logits = True,
        side: Side = "left",
    ) -> Run:
        """Run the model once and capture what is asked.

        Parameters
        ----------
        prompt
            A prompt, a batch, a list of prompts, text, or a dictionary of tensors as the model's forward takes them.
        capture
            Requests, such as ``headscope.Entropy()``.
        logits
            Whether to compute logits of all positions, of the last n (``"last"``: one), or none; saves unembedding.
        side
            Padding side for a list of prompts.

        Raises
        ------
        RequestError
            If a request does not fit the model or the prompt; MemoryBudgetError if it cannot fit the memory.
        PromptError
            If the prompt is longer than the model's context.
        """
        return run(self, prompt, capture, logits=logits, side=side)

    def trace(
        self,
        prompt: Prompt | str,
        capture: Sequence[Request] = (),
        *,
        max_new_tokens: int = 20,
        stop: str | Callable[[str], bool] | None = None,
        teacher: Sequence[int] | None = None,
    ) -> Trace:
        """Generate greedily and capture, at each step, the attention row that produced the token.

        Parameters
        ----------
        stop
            End when this text, or a test of the text so far, is met. An end-of-sequence token always ends.
        teacher
            Token ids to force in place of the model's own choices.
        """
        return trace(self, prompt, capture, max_new_tokens=max_new_tokens, stop=stop, teacher=teacher)

    def generate(self, prompt: Inputs, max_new_tokens: int = 20, **kwargs: Any) -> str | list[str]:
        """Continue a prompt with transformers' ``generate``; text for one prompt, a list for several."""
        return generate(self, prompt, max_new_tokens=max_new_tokens, **kwargs)

    def view(
        self,
        prompt: Prompt | str,
        *,
        heads: Iterable[tuple[int, int]] | None = None,
        layers: Iterable[int] | None = None,
        edits: Sequence[Edit | Editor] = (),
        max_new_tokens: int = 0,
        html: bool = False,
        height: int = 640,
        limit_mb: float = 25,
        theme: Literal["auto", "light", "dark"] = "auto",
    ) -> Any:
        """Run a prompt and show its attention: all heads, one head's pattern, tokens in the text, single pairs.

        What is returned shows itself in a cell of Jupyter or VS Code and in HTML exported from either;
        ``.save(path)`` writes it as a file of its own. It holds its data: no kernel is needed to look at it.

        Parameters
        ----------
        prompt
            Text, or a prompt with regions: ``model.prompt("… {needle} …", needle="…")``.
        heads, layers
            Heads (layer, head), or all heads of layers, whose patterns can be looked at. By default as many as
            ``limit_mb`` has room for, the most telling first; of all others there are statistics and thumbnails.
        edits
            Edits or methods to run under, besides those in force.
        max_new_tokens
            Tokens that the model writes after the prompt before the whole is read.
        html
            Return the page as text.
        height
            Height in a notebook, in pixels.
        limit_mb
            Most megabytes of data.
        theme
            ``"auto"`` follows the reader's system.

        Raises
        ------
        RequestError
            If there is no such head, or the chosen ones do not fit; MemoryBudgetError if the run cannot fit the memory.
        PromptError
            If the prompt is longer than the model's context.
        """
        return importlib.import_module("headscope.report.view.widget").show_prompt(
            self,
            prompt,
            heads=heads,
            layers=layers,
            edits=edits,
            max_new_tokens=max_new_tokens,
            html=html,
            height=height,
            limit_mb=limit_mb,
            theme=theme,
        )

    @contextlib.contextmanager
    def edited(self, *edits: Edit | Editor) -> Iterator[Model]:
        """Run, trace and generate under edits inside the block; they compose with edits already in force.

        Nothing is left behind when the block ends, also by an exception.

        Raises
        ------
        RequestError
            If an edit names a head that the model has not.
        """
        before = self.edits
        self.edits = (*before, *self._checked(edits))
        session = Session(self.sites, edits=self.edits)

        def forget(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            cache = given.get("past_key_values")
            if cache is None or not cache.get_seq_length():  # another prompt: what edits found in the last one is void
                session.memory.clear()

        handle = self.hf.register_forward_pre_hook(forget, with_kwargs=True)
        try:
            with active(session):
                yield self
        finally:
            handle.remove()
            self.edits = before

    @contextlib.contextmanager
    def live(self, inputs: Inputs, *edits: Edit | Editor, side: Side = "left") -> Iterator[dict[str, torch.Tensor]]:
        """Yield tensors for ``model.hf(**tensors)``, which inside the block runs under edits *with* gradients.

        For training and attribution. Rows of edited heads are computed explicitly, (B, edited heads, T, T): meant
        for the lengths one trains at. One call of the model for each block, because edits remember its prefill.
        """
        prepared = prepare(self, inputs, side)
        session = Session(self.sites, (), (*self.edits, *self._checked(edits)), prepared.contexts)
        with active(session):
            yield prepared.tensors
        session.warn_of_nothing()

    def _checked(self, edits: Iterable[Edit | Editor]) -> tuple[Edit, ...]:
        found: list[Edit] = []
        for edit in edits:
            found.extend(edit.edits(self) if isinstance(edit, Editor) else (edit,))
        for edit in found:
            edit.validate(self.sites)
        return tuple(found)
