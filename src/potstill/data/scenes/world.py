"""What the tasks know of: the chosen concepts, and tables of them by kind and by colour."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.data.scenes.composer import Scene, SceneBuilder, Thing
from potstill.data.scenes.pack import Concept, ScenePack


class World:
    """The closed world of a dataset.

    Args:
        pack: Drawings and names.
        concepts: The concepts that occur.
        vendors: The drawing styles that occur.
        builder: Draws the scenes.

    Attributes:
        countable: Numbers of the concepts that English counts.
        categories: (plural word, numbers of its concepts), for words with at least two concepts.
        member_sets: The same, as sets by plural word.
        coloured: By vendor: (colour, numbers of the concepts clearly of that colour), for colours with any.
    """

    def __init__(self, pack: ScenePack, concepts: Sequence[Concept], vendors: Sequence[str], builder: SceneBuilder):
        self.concepts, self.builder = tuple(concepts), builder
        self.countable = [c.number for c in concepts if c.noun == "count"]
        members: dict[str, list[int]] = {}
        for concept in concepts:
            if concept.category:
                members.setdefault(concept.category[1], []).append(concept.number)
        self.categories = [(word, numbers) for word, numbers in sorted(members.items()) if len(numbers) > 1]
        self.member_sets = {word: frozenset(numbers) for word, numbers in self.categories}
        self._colours = {name: pack.vendor(name).colours for name in vendors}
        self.coloured: dict[str, list[tuple[str, list[int]]]] = {}
        for name in vendors:
            table: dict[str, list[int]] = {}
            for concept in concepts:
                colour = self._colours[name][concept.number]
                if colour:
                    table.setdefault(colour, []).append(concept.number)
            self.coloured[name] = sorted(table.items())

    def colour_of(self, scene: Scene, thing: Thing) -> str | None:
        """Return the dominant colour of a thing in this scene's style, or None."""
        return self._colours[scene.vendor][thing.concept]
