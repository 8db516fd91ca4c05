"""Scenes: what stands where, and the picture of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from potstill.data.scenes.draws import Draws
from potstill.data.scenes.pack import ScenePack

POSITIONS = ("top left", "top right", "bottom left", "bottom right")
SIZES = ("small", "large")
BACKGROUNDS = {
    "white": (252, 252, 252),
    "yellow": (255, 238, 150),
    "green": (178, 228, 178),
    "blue": (172, 208, 244),
    "pink": (250, 192, 212),
    "purple": (208, 184, 240),
    "black": (38, 38, 44),
}
BACKGROUND_NAMES = tuple(BACKGROUNDS)
PANEL = (128, 128, 128)
_SHARES = (0.58, 0.875)  # side of a small and of a large thing, in quadrants


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene: concept number, quadrant (0 to 3 in reading order), 1 if large, and where in the quadrant.

    ``across`` and ``down`` are in 256ths of the free room, so a record does not depend on the image size.
    """

    concept: int
    cell: int
    large: int
    across: int
    down: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What one picture shows: things in reading order, style, background, and the quadrant behind the panel if any."""

    things: tuple[Thing, ...]
    vendor: str
    background: str
    hidden: int | None = None

    @property
    def visible(self) -> tuple[Thing, ...]:
        """The things that are not behind the panel."""
        return tuple(t for t in self.things if t.cell != self.hidden)

    def at(self, cell: int) -> Thing | None:
        """Return the thing in a quadrant, seen or not, or None."""
        return next((t for t in self.things if t.cell == cell), None)

    def count(self, concept: int) -> int:
        """Return how many of the visible things are of this concept."""
        return sum(t.concept == concept for t in self.things if t.cell != self.hidden)


class SceneBuilder:
    """Draws scenes that hold what a task wants and respect the split's rule about pairs of concepts.

    Args:
        numbers: How many concepts there are; their numbers are ``0 .. numbers - 1``.
        vendors: Drawing styles to choose from, one for each scene.
        partners: For each concept, those it must not (``pairs="avoid"``) or must (``"need"``) meet.
        pairs: "avoid" or "need".
        min_objects: Fewest things in a scene.
        max_objects: Most things in a scene, 4 at most.
    """

    def __init__(
        self,
        numbers: int,
        vendors: Sequence[str],
        partners: Sequence[frozenset[int]],
        pairs: str,
        min_objects: int,
        max_objects: int,
    ):
        self.numbers, self.vendors, self.partners, self.pairs = numbers, tuple(vendors), partners, pairs
        self.min_objects, self.max_objects = min_objects, max_objects
        if pairs == "need":
            self.min_objects = max(min_objects, 2)
            self._paired = [c for c in range(numbers) if partners[c]]

    def fits(self, concept: int, present: Collection[int]) -> bool:
        """Return whether the concept may join those present."""
        return self.pairs == "need" or self.partners[concept].isdisjoint(present)

    def has_pair(self, present: Collection[int]) -> bool:
        """Return whether two of the concepts are a held-out pair."""
        return any(not self.partners[c].isdisjoint(present) for c in present)

    def another(
        self, draws: Draws, present: Collection[int], avoid: Collection[int] = (), among: Sequence[int] | None = None
    ) -> int | None:
        """Return a random concept that may join those present, not in ``avoid``; None if ``among`` has none."""
        for _ in range(12):
            concept = draws.below(self.numbers) if among is None else draws.pick(among)
            if concept not in avoid and self.fits(concept, present):
                return concept
        left = [c for c in (among or range(self.numbers)) if c not in avoid and self.fits(c, present)]
        return draws.pick(left) if left else None

    def objects(self, draws: Draws) -> int:
        """Return a number of things, every allowed number equally likely."""
        return self.min_objects + draws.below(self.max_objects - self.min_objects + 1)

    def build(
        self,
        draws: Draws,
        wanted: Sequence[int] = (),
        avoid: Collection[int] = (),
        count: int | None = None,
        cells: Sequence[int] | None = None,
        vendor: str | None = None,
        hidden: int | None = None,
    ) -> Scene:
        """Return a scene with the wanted concepts and others around them.

        What a task asks for is an aim: where it cannot be met together with the split's rule, the rule wins. So the
        truth about a scene is always read from the scene.

        Args:
            draws: The sample's random numbers.
            wanted: Concepts to show, once for each mention, in the order of ``cells``.
            avoid: Concepts not to add.
            count: Number of things; random where None, never fewer than wanted.
            cells: Quadrants in the order in which they are filled; random where None.
            vendor: Drawing style; random where None.
            hidden: Quadrant behind the panel.
        """
        count = max(self.objects(draws) if count is None else count, len(wanted))
        present = list(wanted)
        if self.pairs == "need" and not self.has_pair(present):
            self._add_partner(draws, present, avoid, count)
        while len(present) < count:
            concept = None
            if present and draws.chance(20):
                concept = draws.pick(present)
                if concept in avoid:
                    concept = None
            if concept is None:
                concept = self.another(draws, present, avoid)
            if concept is None:
                break
            present.append(concept)
        cells = draws.shuffled((0, 1, 2, 3)) if cells is None else cells
        things = sorted(zip(cells, present))
        packed = [draws.below(1 << 17) for _ in things]
        return Scene(
            tuple(Thing(c, cell, p >> 16, (p >> 8) & 255, p & 255) for (cell, c), p in zip(things, packed)),
            vendor or draws.pick(self.vendors),
            draws.pick(BACKGROUND_NAMES),
            hidden,
        )

    def _add_partner(self, draws: Draws, present: list[int], avoid: Collection[int], count: int) -> None:
        """Complete a held-out pair; gives up the last wanted thing where there is no room."""
        if not present:
            present.append(draws.pick(self._paired))
        if len(present) >= max(count, 2):
            present.pop()
        for base in draws.shuffled(present):
            choices = sorted(self.partners[base].difference(avoid))
            if choices:
                present.append(draws.pick(choices))
                return
        if not self.partners[present[0]]:
            present[0] = draws.pick(self._paired)
        present.append(draws.pick(sorted(self.partners[present[0]])))


class Painter:
    """Turns scenes into pictures.

    Every drawing is resized once; a drawing on a background is blended once and then copied. A thing stays inside
    its quadrant, so things never cover each other.

    Args:
        pack: Where the drawings come from.
        numbers: How many concepts may occur.
        vendors: Styles that may occur.
        image_size: Side of the picture in pixels, even.
    """

    def __init__(self, pack: ScenePack, numbers: int, vendors: Sequence[str], image_size: int):
        self.image_size = image_size
        self.quadrant = image_size // 2
        self.sides = tuple(round(share * self.quadrant) for share in _SHARES)
        self.sprites = {
            (name, large): _resized(pack.vendor(name).tiles[:numbers], side)
            for name in vendors
            for large, side in enumerate(self.sides)
        }
        self._blended: dict[tuple[str, int, int, str], np.ndarray] = {}
        colours = np.array(list(BACKGROUNDS.values()), dtype=np.uint8)
        self._plain = np.ascontiguousarray(
            np.broadcast_to(colours[:, None, None, :], (len(colours), image_size, image_size, 3))
        )
        self._background_numbers = {name: number for number, name in enumerate(BACKGROUND_NAMES)}

    def paint(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Return the pictures, uint8 ``[N, H, W, 3]``."""
        numbers = [self._background_numbers[scene.background] for scene in scenes]
        pictures = self._plain.take(numbers, axis=0)
        blended, half, sides = self._blended, self.quadrant, self.sides
        for picture, scene in zip(pictures, scenes):
            vendor, background, hidden = scene.vendor, scene.background, scene.hidden
            for thing in scene.things:
                cell = thing.cell
                if cell == hidden:
                    continue
                key = (vendor, thing.concept, thing.large, background)
                tile = blended.get(key)
                if tile is None:
                    tile = blended[key] = self._blend(*key)
                side = sides[thing.large]
                room = half - side + 1
                top = (cell >> 1) * half + ((thing.down * room) >> 8)
                left = (cell & 1) * half + ((thing.across * room) >> 8)
                picture[top : top + side, left : left + side] = tile
            if hidden is not None:
                top, left = (hidden >> 1) * half, (hidden & 1) * half
                picture[top : top + half, left : left + half] = PANEL
        return pictures

    def masks(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """Return which pixel belongs to what.

        Returns:
            The instance mask, uint8 ``[H, W]``: 0 background, k the k-th thing of the scene in reading order; and the
            concept map, int16 ``[H, W]``: concept number, -100 for background. A hidden thing has no pixels.
        """
        instances = np.zeros((self.image_size, self.image_size), dtype=np.uint8)
        concepts = np.full((self.image_size, self.image_size), -100, dtype=np.int16)
        for k, thing in enumerate(scene.things, start=1):
            if thing.cell == scene.hidden:
                continue
            side = self.sides[thing.large]
            room = self.quadrant - side + 1
            top = (thing.cell >> 1) * self.quadrant + ((thing.down * room) >> 8)
            left = (thing.cell & 1) * self.quadrant + ((thing.across * room) >> 8)
            solid = self.sprites[scene.vendor, thing.large][thing.concept, :, :, 3] >= 0.5
            instances[top : top + side, left : left + side][solid] = k
            concepts[top : top + side, left : left + side][solid] = thing.concept
        return instances, concepts

    def _blend(self, vendor: str, concept: int, large: int, background: str) -> np.ndarray:
        sprite = self.sprites[vendor, large][concept]
        behind = np.array(BACKGROUNDS[background], dtype=np.float32)
        return np.clip(np.rint(sprite[..., :3] + (1 - sprite[..., 3:]) * behind), 0, 255).astype(np.uint8)


def _resized(tiles: np.ndarray, side: int) -> np.ndarray:
    """Return premultiplied float32 sprites ``[N, side, side, 4]``: colour in 0 to 255, coverage in 0 to 1."""
    out = np.empty((len(tiles), side, side, 4), dtype=np.float32)
    for sprite, tile in zip(out, tiles):
        small = np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.BOX), dtype=np.float32)
        sprite[..., 3] = small[..., 3] / 255
        sprite[..., :3] = small[..., :3] * sprite[..., 3:]
    return out
