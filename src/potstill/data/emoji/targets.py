"""What is to be told about an emoji: its name, its kind, or whether it is an animal."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.data.scenes.pack import Concept
from potstill.errors import InputError, suggest

TARGETS = ("name", "subgroup", "group", "binary")


def classes_for(concepts: Sequence[Concept], target: str) -> tuple[list[int], list[str]]:
    """Return the class of each concept and the names of the classes, in the order in which they first occur.

    "name" makes every concept a class; "subgroup" and "group" are those of Unicode's CLDR (35 and 7 among the first
    200 concepts); "binary" is "other" (0) or "animal" (1), which are nearly equal in number among the first 200 (103
    and 97). The few-class targets leave much inside a class to be told apart, which is what LELP lives on.

    Raises:
        InputError: if there is no such target.
    """
    if target not in TARGETS:
        raise InputError(f'unknown target "{target}"', where="target", hint=suggest(str(target), TARGETS))
    if target == "binary":
        return [int(concept.subgroup.startswith("animal-")) for concept in concepts], ["other", "animal"]
    values = [getattr(concept, target) for concept in concepts]
    names = list(dict.fromkeys(values))
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers[value] for value in values], names
