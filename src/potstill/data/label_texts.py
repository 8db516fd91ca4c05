"""Names of classes as sentences, for the text encoder of a vision-language model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from potstill.errors import InputError

_HERE = "enrich_labels"
_PLACES = re.compile(r"\{(\w*)\}")

__all__ = ["enrich_labels"]


def enrich_labels(
    names: Sequence[str],
    descriptions: Sequence[str] | None,
    template: str = "a photo of {name} . {description}",
) -> list[str]:
    """Return one sentence for each class: its name, and what it looks like.

    A name says little to a student about a class it never saw; one sentence of visible attributes (colour, shape,
    parts) gives the text features something that seen classes share. Use the same template in training and for new
    classes. A text encoder cuts what is beyond its context: put the name first.

    Args:
        names: Names of the classes, in the order of their numbers.
        descriptions: One sentence for each, in the same order; None = names alone, the place of the description and
            the punctuation before it are left out of the template.
        template: Holds ``{name}`` and, where descriptions are given, ``{description}``.

    Returns:
        As many texts as names.

    Raises:
        InputError: another number of descriptions than names; a template without ``{name}``, without ``{description}``
            though there are some, or with another place.

    Source:
        Language enrichment of Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution
        Generalizability", ICCV 2023 (arXiv 2307.03135).

    Example:
        >>> enrich_labels(["toucan"], ["a bird with a huge orange bill"])
        ['a photo of toucan . a bird with a huge orange bill']
        >>> enrich_labels(["toucan"], None)
        ['a photo of toucan']
    """
    for side, given in (("names", names), ("descriptions", descriptions or ())):
        if isinstance(given, str) or not all(isinstance(text, str) for text in given):
            raise InputError("is no list of texts", where=f"{_HERE}.{side}", got=given)
    if descriptions is not None and len(descriptions) != len(names):
        raise InputError(
            "names and descriptions do not pair up",
            where=f"{_HERE}.descriptions",
            expected=f"{len(names)}, one for each name",
            got=len(descriptions),
        )
    needed = {"name"} if descriptions is None else {"name", "description"}
    places = set(_PLACES.findall(template))
    if not needed <= places <= {"name", "description"}:
        raise InputError(
            "the template does not fit",
            where=f"{_HERE}.template",
            expected=" and ".join(f"{{{place}}}" for place in sorted(needed, reverse=True)),
            got=template,
        )
    if descriptions is None:
        template = re.sub(r"[\s.,:;-]*\{description\}", "", template)
    rows = zip(names, descriptions if descriptions is not None else [""] * len(names))
    # In one pass: a name may hold braces.
    return [
        _PLACES.sub(lambda place, name=name, text=text: name if place[1] == "name" else text, template)
        for name, text in rows
    ]
