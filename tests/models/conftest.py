"""Tiny tokenizers of the three usual kinds, trained here in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

CORPUS = [
    "The secret code is 7421 and the harbour is quiet in the morning.",
    "Question: what is the secret code? Answer: the code of the vault is 93.",
    "system user assistant You are helpful. naïve café straße Ελλάδα 東京 🙂 🏳️‍🌈",
    "one two three four five six seven eight nine ten   spaces\n\nand lines\n",
] * 5

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPPING = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }} [end]\n{% endfor %}A:"
MERGING = (
    "{% if messages[0]['role'] == 'system' %}{% set s = '<<SYS>>' + messages[0]['content'] + '<</SYS>>\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<s>[INST] {{ (s + m['content']).strip() }} [/INST]{% endfor %}"
)
SHOUTING = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
ECHOING = "{% for m in messages %}{{ m['content'] }} {{ m['content'] }}{% endfor %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m['content'] }}\n{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "stripping": STRIPPING,
    "merging": MERGING,
    "shouting": SHOUTING,
    "echoing": ECHOING,
    "no_system": NO_SYSTEM,
}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[UNK]", "[CLS]", "[SEP]"]


def _byte_level(trim_offsets: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if trim_offsets:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return tokenizer


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 5), ("[SEP]", 6)]
    )
    return tokenizer


def _unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def _sentencepiece_bpe() -> Any:
    """As Llama 2: BPE over ▁ with bytes for what the vocabulary lacks, and a prepended ▁."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    vocabulary = {name: index for index, name in enumerate(SPECIAL)}
    for name in [f"<0x{byte:02X}>" for byte in range(256)] + list("▁abcdehiklmnoqrstuvwy.7421") + ["▁t", "▁th", "▁the"]:
        vocabulary.setdefault(name, len(vocabulary))
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Tokenizer by kind: byte_level (GPT-2), byte_level_bos (with BOS and EOS), wordpiece, unigram, sentencepiece."""
    from transformers import PreTrainedTokenizerFast

    makers: dict[str, Callable[[], Any]] = {
        "byte_level": lambda: _byte_level(trim_offsets=True),
        "byte_level_bos": lambda: _byte_level(trim_offsets=False),
        "wordpiece": _wordpiece,
        "unigram": _unigram,
        "sentencepiece": _sentencepiece_bpe,
    }
    cache: dict[str, Any] = {}

    def make(kind: str, template: str | None = None) -> Any:
        key = f"{kind}/{template}"
        if key not in cache:
            cache[key] = PreTrainedTokenizerFast(
                tokenizer_object=makers[kind](), bos_token="<s>", eos_token="</s>", unk_token="[UNK]"
            )
            cache[key].chat_template = TEMPLATES[template] if template else None
        return cache[key]

    return make
