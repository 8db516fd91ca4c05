"""The English of the scenes, in one place: captions, their parser, and the closed list of answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from potstill.data.scenes.composer import BACKGROUND_NAMES, POSITIONS, SIZES, Scene
from potstill.data.scenes.pack import Concept, load_pack
from potstill.errors import InputError, suggest

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey", "black")
NUMBERS = ("0", "1", "2", "3", "4")
LANGUAGES = ("en", "de", "fr", "es", "zh")
LANGUAGE_NAMES = {"en": "English", "de": "German", "fr": "French", "es": "Spanish", "zh": "Chinese"}
NOTHING = "nothing"
ENTAILMENT_LABELS = ("entailment", "neutral", "contradiction")
NLVR2_LABELS = ("false", "true")


def closed_answers(concepts: Sequence[Concept]) -> list[str]:
    """Return every answer a question about these concepts can have, in a fixed order."""
    plain = ["yes", "no", *SIZES, *NUMBERS, *POSITIONS, *COLOURS, *BACKGROUND_NAMES, NOTHING]
    return list(dict.fromkeys([*plain, *(c.name for c in concepts)]))


def caption(scene: Scene, concepts: Sequence[Concept], language: str = "en") -> str:
    """Return the caption of a scene: every visible thing in reading order.

    English says where each one stands ("a dog top left, an apple bottom right"); other languages list the names.
    """
    if language == "en":
        return ", ".join(f"{concepts[t.concept].with_article} {POSITIONS[t.cell]}" for t in scene.visible)
    return name_list(scene, concepts, language)


def name_list(scene: Scene, concepts: Sequence[Concept], language: str) -> str:
    """Return the names of the visible things in reading order, in one language."""
    return ", ".join(concepts[t.concept].names[language] for t in scene.visible)


def objects_in_caption(text: str, language: str = "en") -> set[tuple[str, str | None]]:
    """Return the things a caption names, for scoring: pairs of (English name, position).

    A part that names no known thing is left out. Position is None where the part gives none, as in the name lists of
    other languages.

    Args:
        text: A caption, by a person or a model; spaces before commas and a language tag do no harm.
        language: Language of the names.

    Raises:
        InputError: if the language is not one of the pack's.
    """
    check_languages((language,))
    known = _names_in(language)
    found: set[tuple[str, str | None]] = set()
    for part in text.lower().replace("、", ",").split(","):
        words = [w for w in part.split() if not w.startswith("[")]
        position = " ".join(words[-2:])
        if position in POSITIONS:
            words = words[:-2]
        else:
            position = None
        if language == "en" and words and words[0] in ("a", "an"):
            words = words[1:]
        name = known.get(_squeezed(" ".join(words), language))
        if name is not None:
            found.add((name, position))
    return found


class PhraseFinder:
    """Finds in an English sentence the phrases that name things: a concept ("dog", "dogs") or a kind ("animals").

    Args:
        concepts: The concepts that occur, numbered from 0.

    Attributes:
        phrases: All of them.
        names_of: By concept, the phrases that can mean it.
    """

    def __init__(self, concepts: Sequence[Concept]):
        self.names_of = [[p for p in (c.name, c.plural, *(c.category or ())) if p] for c in concepts]
        self._members: dict[str, set[int]] = {}
        for concept, names in zip(concepts, self.names_of):
            for phrase in names:
                self._members.setdefault(phrase, set()).add(concept.number)
        self.phrases = tuple(self._members)
        longest_first = sorted(self.phrases, key=lambda phrase: (-len(phrase), phrase))
        self._pattern = re.compile(r"(?<!\S)(?:" + "|".join(map(re.escape, longest_first)) + r")(?![^\s,?])")

    def __call__(self, text: str) -> Iterator[tuple[int, set[int]]]:
        """Yield where each phrase ends and the numbers of the concepts it can mean."""
        for found in self._pattern.finditer(text):
            yield found.end(), self._members[found.group()]


def check_languages(languages: Sequence[str]) -> tuple[str, ...]:
    """Return the languages as a tuple.

    Raises:
        InputError: if one is not in the pack, or there is none.
    """
    if isinstance(languages, str):
        languages = (languages,)
    for language in languages:
        if language not in LANGUAGES:
            raise InputError(
                f'unknown language "{language}"', where="languages", hint=suggest(str(language), LANGUAGES)
            )
    if not languages:
        raise InputError("no language is given", where="languages", expected=", ".join(LANGUAGES))
    return tuple(languages)


def check_directions(directions: Sequence[str]) -> tuple[str, ...]:
    """Return directions of translation such as "en-de" as a tuple.

    Raises:
        InputError: if one does not join two different languages of the pack, or there is none.
    """
    if isinstance(directions, str):
        directions = (directions,)
    for direction in directions:
        source, _, target = str(direction).partition("-")
        if source == target or source not in LANGUAGES or target not in LANGUAGES:
            raise InputError(
                "is no direction of translation",
                where="directions",
                expected=f'two of {", ".join(LANGUAGES)}, such as "en-de"',
                got=direction,
            )
    if not directions:
        raise InputError("no direction is given", where="directions", expected='such as "en-de"')
    return tuple(directions)


@lru_cache(maxsize=len(LANGUAGES))
def _names_in(language: str) -> dict[str, str]:
    """English names by lower-case name; of two concepts with one name, the one that comes first."""
    names: dict[str, str] = {}
    for concept in load_pack().concepts:
        names.setdefault(_squeezed(concept.names[language].lower(), language), concept.name)
    return names


def _squeezed(name: str, language: str) -> str:
    return name.replace(" ", "") if language == "zh" else name
