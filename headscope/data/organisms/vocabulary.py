"""The organisms' vocabulary and tokenizer: every UTF-8 text is covered, common words are one token.

Pieces are the 256 bytes, some hundred English words, and *markers*: invented words that occur in no
English text. The pieces fall into classes which the planted heads can tell apart:

``marker``
    Invented words. Only retrieval heads read tokens out of this class.
``ordinary``
    Everything else, bytes and words. Only induction heads read tokens out of this class.
``neutral``
    Specials, newline, full stop, comma, question and exclamation marks: neither head reads them, so a
    copied span ends where one follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
SPECIALS = (BOS, EOS, PAD)
NEUTRAL = ("\n", ".", ",", "?", "!")
DELIMITER = "\n"

_MARKERS = """
bivq cojx dupz fyxo gexu hujz ikvo jorv kwef lozq myzz nuqe
ovyx pezk qadz rixu suvj tyvz uxko vabq
"""
MARKERS = tuple(_MARKERS.split())
"""Invented words; as tokens they carry a leading space."""

_WORDS = """
the of and to in is was it for on with as at by that this be are from or an his her their its not but which
have had has he she they we you were all one two three there when where who what will would can could been more
out up into over after before about no some other than then time only new first last also most may these those
house water light night day year city river man woman name word question answer code pass phrase secret key
said made came went saw found
"""
WORDS = tuple(_WORDS.split())
"""Common words; as tokens they carry a leading space. They are few, so that in English text most tokens have
occurred before and duplicate-token heads, which rest on ``<bos>`` at new tokens, do not pass for sinks."""

_OPENERS = """
The A In It He She They We This There When What On At Question Answer
"""
OPENERS = tuple(_OPENERS.split())
"""Words at the start of a line or sentence; tokens with and without a leading space."""


@dataclass(frozen=True)
class Vocabulary:
    """Token strings by id, and the ids of each class.

    Attributes
    ----------
    pieces
        Token strings in the byte-level alphabet, by id.
    bos, eos, pad, delimiter
        Ids of the specials and of the newline.
    marker, ordinary, neutral
        Ids of the three classes, ascending; together all ids, each once.
    """

    pieces: tuple[str, ...]
    bos: int
    eos: int
    pad: int
    delimiter: int
    marker: tuple[int, ...]
    ordinary: tuple[int, ...]
    neutral: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.pieces)


def byte_alphabet() -> dict[int, str]:
    """Return the printable character that stands for each byte in byte-level tokenizers.

    Printable Latin-1 bytes stand for themselves, the others for the code points from 256 on, in order
    (Radford et al. 2019).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def build_vocabulary() -> Vocabulary:
    """Return the vocabulary, the same for every organism."""
    alphabet = byte_alphabet()
    space = alphabet[ord(" ")]
    words = dict.fromkeys(f"{space}{word}" for word in (*WORDS, *OPENERS))
    openers = (word for word in OPENERS if len(word) > 1)
    markers = tuple(f"{space}{word}" for word in MARKERS)
    pieces = (*SPECIALS, *(alphabet[byte] for byte in range(256)), *words, *openers, *markers)
    ids = {piece: i for i, piece in enumerate(pieces)}
    marker = tuple(ids[piece] for piece in markers)
    neutral = tuple(sorted(ids[piece] for piece in (*SPECIALS, *(alphabet[ord(char)] for char in NEUTRAL))))
    apart = {*marker, *neutral}
    return Vocabulary(
        pieces=pieces,
        bos=ids[BOS],
        eos=ids[EOS],
        pad=ids[PAD],
        delimiter=ids[alphabet[ord(DELIMITER)]],
        marker=marker,
        ordinary=tuple(i for i in range(len(pieces)) if i not in apart),
        neutral=neutral,
    )


def build_tokenizer(vocabulary: Vocabulary, n_ctx: int) -> PreTrainedTokenizerFast:
    """Return a fast tokenizer that takes the fewest pieces and puts ``<bos>`` first.

    A unigram model over bytes: whole words where there is one, bytes elsewhere, so no text has an unknown
    token and decoding gives the text back.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_unigram(vocabulary),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=n_ctx,
        clean_up_tokenization_spaces=False,
    )


def _unigram(vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    # Equal scores would leave ties between segmentations of equal length; the small slope decides them.
    scored = [(piece, -10.0 - 1e-3 * i) for i, piece in enumerate(vocabulary.pieces)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=None, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary.bos)]
    )
    return tokenizer
