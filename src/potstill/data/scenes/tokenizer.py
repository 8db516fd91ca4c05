"""A small closed vocabulary: the words of the grammar and of the chosen names, nothing learned."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from potstill.data.scenes.composer import POSITIONS, SIZES
from potstill.data.scenes.pack import load_pack
from potstill.data.scenes.wording import (
    COLOURS,
    ENTAILMENT_LABELS,
    LANGUAGE_NAMES,
    NLVR2_LABELS,
    check_languages,
    closed_answers,
)
from potstill.errors import InputError

SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
GRAMMAR = (
    ", ? a an the in is are there what where how many colour object background or "
    "both images contain exactly one image contains left right has and more objects than have same number of"
)
# What text-to-text models read and write besides; behind all others, so that no other model's token is renumbered.
PROMPT_WORDS = (
    *("vqa:", "claim:", "find:", "caption:", "caption", "translate", "to"),
    *(f"{name}:" for name in LANGUAGE_NAMES.values()),
    *(*ENTAILMENT_LABELS, *NLVR2_LABELS),
)


def build_tokenizer(
    concepts: int = 96, languages: Sequence[str] = ("en",), *, prompts: bool = False
) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the scenes: one token a word, for Chinese one a character.

    The vocabulary is ``[PAD] [BOS] [EOS] [UNK]``, a tag such as ``[de]`` for every language but English, the words of
    the grammar, the answers, and the names of the concepts, in a fixed order. English words come first, then language
    by language: adding a language or asking for more concepts is a new vocabulary, not an extension.

    Args:
        concepts: How many concepts, as in SceneDataset.
        languages: Languages of the names; English is always in.
        prompts: Also the words of the prompts of ``text_to_text``, at the end.

    Returns:
        A fast tokenizer. Called plainly it wraps a text in ``[BOS] … [EOS]``.

    Raises:
        InputError: if ``concepts`` is out of range or a language is unknown.
    """
    languages = tuple(dict.fromkeys(("en", *check_languages(languages))))
    pack = load_pack()
    if not 1 <= concepts <= len(pack.concepts):
        raise InputError("out of range", where="concepts", expected=f"1 to {len(pack.concepts)}", got=concepts)
    chosen = pack.concepts[:concepts]
    words = [*SPECIAL, *(f"[{code}]" for code in languages if code != "en"), *GRAMMAR.split()]
    for text in (*POSITIONS, *SIZES, *COLOURS, *closed_answers(chosen)):
        words += split_words(text)
    for concept in chosen:
        for text in (concept.plural, *(concept.category or ())):
            words += split_words(text or "")
    for code in languages[1:]:
        for concept in chosen:
            words += split_words(concept.names[code])
    if prompts:
        words += PROMPT_WORDS
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}

    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[,?]|\p{Han}"), behavior="isolated"),
        ]
    )
    # This decoder's clean-up takes the space before a comma or question mark away again.
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]",
        pair="[BOS] $A [EOS] $B:1 [EOS]:1",
        special_tokens=[("[BOS]", vocabulary["[BOS]"]), ("[EOS]", vocabulary["[EOS]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        model_max_length=32,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def split_words(text: str) -> list[str]:
    """Split a text as the tokenizer does."""
    return re.findall(r"[,?]|[\u2e80-\u9fff\uf900-\ufaff]|[^\s,?\u2e80-\u9fff\uf900-\ufaff]+", text)
