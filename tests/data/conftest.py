"""What data sets need of a model, without one: a tokenizer, a context length, and calls that say what they were."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class FakeModel:
    """The part of the model facade that data sets use."""

    name = "fake"

    def __init__(self, tokenizer: Any, n_ctx: int | None = 700) -> None:
        self.tokenizer = tokenizer
        self.spec = SimpleNamespace(n_ctx=n_ctx, vocab_size=len(tokenizer))
        self.hf = SimpleNamespace(config=SimpleNamespace(bos_token_id=3, eos_token_id=4))

    def prompt(self, template: str, **options: Any) -> Any:
        from headscope.models.prompt import build_prompt

        known = ("chat", "system", "max_length", "truncate", "add_special_tokens")
        settings = {name: options.pop(name) for name in known if name in options}
        return build_prompt(self.tokenizer, template, fills=options, n_ctx=self.spec.n_ctx, **settings)

    def prompt_from_ids(self, ids: Any, regions: Any = None) -> Any:
        from headscope.models.prompt import Prompt

        return Prompt.from_ids(ids, regions, self.tokenizer, n_ctx=self.spec.n_ctx)

    def run(self, prompt: Any, capture: Any, logits: Any) -> Any:
        return ("run", prompt, capture, logits)

    def trace(self, prompt: Any, capture: Any, max_new_tokens: int, stop: Any) -> Any:
        return SimpleNamespace(prompt=prompt, capture=capture, max_new_tokens=max_new_tokens, stop=stop)


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """Byte-level BPE, WordPiece and Unigram over our own prose."""
    import random
    from itertools import islice

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from headscope.data.documents import DOMAINS, document

    corpus = ["".join(islice(document(domain, random.Random(9)), 60)) for domain in DOMAINS]
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[UNK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.post_processor = processors.ByteLevel(trim_offsets=True)
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = decoders.WordPiece()
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    options: dict[str, Any] = {"vocab_size": 500, "special_tokens": special, "show_progress": False}
    byte_level.train_from_iterator(corpus, trainers.BpeTrainer(initial_alphabet=alphabet, **options))
    wordpiece.train_from_iterator(corpus, trainers.WordPieceTrainer(**options))
    unigram.train_from_iterator(corpus, trainers.UnigramTrainer(unk_token="[UNK]", **options))
    for tokenizer in (wordpiece, unigram):
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    named = {"byte_level": byte_level, "wordpiece": wordpiece, "unigram": unigram}
    return {
        name: PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")
        for name, tokenizer in named.items()
    }


@pytest.fixture
def model(tokenizers: dict[str, Any]) -> FakeModel:
    return FakeModel(tokenizers["byte_level"])


@pytest.fixture
def make_model(tokenizers: dict[str, Any]) -> Any:
    """Fake model by kind of tokenizer, context and whether it chats."""
    from copy import copy

    def make(kind: str = "byte_level", n_ctx: int | None = 700, chat: bool = False) -> FakeModel:
        tokenizer = copy(tokenizers[kind])
        tokenizer.chat_template = CHATML if chat else None
        return FakeModel(tokenizer, n_ctx)

    return make
