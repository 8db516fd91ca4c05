"""Claims about a picture with one quadrant behind a grey panel: true, false, or not to be known.

The sentence is drawn before the label and the panel is there under every label, so neither text alone nor the panel
alone tells anything.
"""

from __future__ import annotations

from collections.abc import Callable

from potstill.data.scenes.composer import POSITIONS, SIZES, Scene, Thing
from potstill.data.scenes.draws import Draws

TRUE, UNKNOWN, FALSE = range(3)
Claim = tuple[Scene, str, int]  # scene, sentence, label


def _scene(draws: Draws, world, shown: int | None, cell: int, label: int, vendor: str | None = None) -> Scene:
    """Return a scene with ``shown`` (None: nothing) in ``cell``; under the label "unknown" the panel is there instead.

    The number of things in sight does not depend on the label; behind the panel there is something half of the time.
    """
    builder = world.builder
    others = draws.shuffled([c for c in range(4) if c != cell])
    hidden = cell if label == UNKNOWN else others.pop()
    wanted = [] if label == UNKNOWN or shown is None else [shown]
    in_sight = min(builder.objects(draws), 3)
    cells = ([cell, *others] if wanted else others)[:in_sight]
    if builder.max_objects > len(cells) and draws.chance(50):
        cells = [*cells, hidden]
    return builder.build(draws, wanted=wanted, count=len(cells), cells=cells, vendor=vendor, hidden=hidden)


def thing(draws: Draws, world) -> Claim:
    """There is a <thing> in the <position>. One false claim in six is about an empty place."""
    concept, cell, label = draws.below(len(world.concepts)), draws.below(4), draws.below(3)
    shown = concept
    if label == FALSE:
        shown = None if draws.below(6) == 0 else world.builder.another(draws, (), avoid={concept})
    scene = _scene(draws, world, shown, cell, label)
    named = world.concepts[concept]
    verb = "are" if named.noun == "plural" else "is"
    text = f"there {verb} {named.with_article} in the {POSITIONS[cell]}"
    return scene, text, _judge(scene, cell, lambda t: t is not None and t.concept == concept)


def category(draws: Draws, world) -> Claim:
    """There is a <kind of thing> in the <position>."""
    (plural, members), cell, label = draws.pick(world.categories), draws.below(4), draws.below(3)
    family = world.member_sets[plural]
    shown = draws.pick(members) if label != FALSE else world.builder.another(draws, (), avoid=family)
    scene = _scene(draws, world, shown, cell, label)
    word = world.concepts[members[0]].category[0]
    text = f"there is {'an' if word[0] in 'aeiou' else 'a'} {word} in the {POSITIONS[cell]}"
    return scene, text, _judge(scene, cell, lambda t: t is not None and t.concept in family)


def colour(draws: Draws, world) -> Claim:
    """The object in the <position> is <colour>."""
    vendor, cell, label = draws.pick(world.builder.vendors), draws.below(4), draws.below(3)
    claimed, members = draws.pick(world.coloured[vendor])
    shown = draws.pick(members)
    if label == FALSE:
        others = [entry for entry in world.coloured[vendor] if entry[0] != claimed]
        shown = draws.pick(draws.pick(others)[1])
    scene = _scene(draws, world, shown, cell, label, vendor=vendor)
    text = f"the object in the {POSITIONS[cell]} is {claimed}"
    return scene, text, _judge(scene, cell, lambda t: t is not None and world.colour_of(scene, t) == claimed)


def size(draws: Draws, world) -> Claim:
    """The object in the <position> is small or large."""
    claimed, cell, label = draws.below(2), draws.below(4), draws.below(3)
    scene = _scene(draws, world, draws.below(len(world.concepts)), cell, label)
    if label != UNKNOWN:
        large = claimed if label == TRUE else 1 - claimed
        things = tuple(Thing(t.concept, t.cell, large, t.across, t.down) if t.cell == cell else t for t in scene.things)
        scene = Scene(things, scene.vendor, scene.background, scene.hidden)
    text = f"the object in the {POSITIONS[cell]} is {SIZES[claimed]}"
    return scene, text, _judge(scene, cell, lambda t: t is not None and t.large == claimed)


def _judge(scene: Scene, cell: int, holds: Callable[[Thing | None], bool]) -> int:
    if cell == scene.hidden:
        return UNKNOWN
    return TRUE if holds(scene.at(cell)) else FALSE


# Things are half of all claims: naming is what the pictures are about.
KINDS: dict[str, Callable[..., Claim]] = {"thing": thing, "category": category, "colour": colour, "size": size}
KIND_MIX = ("thing", "thing", "thing", "category", "colour", "size")
