"""Questions about one picture, with answers from a closed list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from potstill.data.scenes.composer import POSITIONS, SIZES, Scene
from potstill.data.scenes.draws import Draws
from potstill.data.scenes.wording import NOTHING

Question = tuple[Scene, str, str]  # scene, question, answer


def what(draws: Draws, world) -> Question:
    """What is in the <position>? One time in eight the place is empty, where the number of things allows it."""
    scene = world.builder.build(draws)
    cells = [t.cell for t in scene.things]
    empty = [cell for cell in range(4) if cell not in cells]
    cell = draws.pick(empty if empty and draws.below(8) == 0 else cells)
    thing = scene.at(cell)
    return scene, f"what is in the {POSITIONS[cell]}?", world.concepts[thing.concept].name if thing else NOTHING


def where(draws: Draws, world) -> Question:
    """Where is the <thing>? The thing is there exactly once."""
    scene, thing = _scene_with_single(draws, world)
    concept = world.concepts[thing.concept]
    verb = "are" if concept.noun == "plural" else "is"
    return scene, f"where {verb} the {concept.name}?", POSITIONS[thing.cell]


def count(draws: Draws, world) -> Question:
    """How many <things> are there? The number is drawn first, so every number is equally common where it fits."""
    builder = world.builder
    concept = draws.pick(world.countable)
    target = draws.below(builder.max_objects + 1)
    objects = max(target, builder.objects(draws))
    scene = builder.build(draws, wanted=[concept] * target, avoid={concept}, count=objects)
    return scene, f"how many {world.concepts[concept].plural} are there?", str(scene.count(concept))


def category(draws: Draws, world) -> Question:
    """How many <kind of thing> are there? Number first, as above."""
    builder = world.builder
    plural, members = draws.pick(world.categories)
    target = draws.below(builder.max_objects + 1)
    objects = max(target, builder.objects(draws))
    wanted: list[int] = []
    while len(wanted) < target:
        member = builder.another(draws, wanted, among=members)
        wanted.append(wanted[-1] if member is None else member)
    scene = builder.build(draws, wanted=wanted, avoid=world.member_sets[plural], count=objects)
    number = sum(t.concept in world.member_sets[plural] for t in scene.things)
    return scene, f"how many {plural} are there?", str(number)


def colour(draws: Draws, world) -> Question:
    """What colour is the object in the <position>? Colour first, then a thing that clearly has it.

    Asked by position, so the question does not tell the colour.
    """
    builder = world.builder
    vendor = draws.pick(builder.vendors)
    aimed: list = []
    while not aimed:  # a held-out pair may have pushed the thing out
        _, members = draws.pick(world.coloured[vendor])
        scene = builder.build(draws, wanted=[draws.pick(members)], vendor=vendor)
        aimed = [t for t in scene.things if t.concept in members]
    thing = draws.pick(aimed)
    return scene, f"what colour is the object in the {POSITIONS[thing.cell]}?", world.colour_of(scene, thing)


def background(draws: Draws, world) -> Question:
    """What colour is the background?"""
    scene = world.builder.build(draws)
    return scene, "what colour is the background?", scene.background


def size(draws: Draws, world) -> Question:
    """Is the <thing> small or large? The thing is there exactly once."""
    scene, thing = _scene_with_single(draws, world)
    concept = world.concepts[thing.concept]
    verb = "are" if concept.noun == "plural" else "is"
    return scene, f"{verb} the {concept.name} small or large?", SIZES[thing.large]


def exists(draws: Draws, world) -> Question:
    """Is there a <thing>? Thing and answer are drawn first and independently."""
    concept = draws.below(len(world.concepts))
    if draws.chance(50):
        scene = world.builder.build(draws, wanted=[concept])
    else:
        scene = world.builder.build(draws, avoid={concept})
    verb = "are" if world.concepts[concept].noun == "plural" else "is"
    answer = "yes" if scene.count(concept) else "no"
    return scene, f"{verb} there {world.concepts[concept].with_article}?", answer


KINDS: dict[str, Callable[..., Question]] = {
    "what": what,
    "where": where,
    "count": count,
    "category": category,
    "colour": colour,
    "background": background,
    "size": size,
    "exists": exists,
}
KIND_NAMES = tuple(KINDS)


def _scene_with_single(draws: Draws, world):
    """Return a scene and a thing in it whose concept occurs once."""
    while True:
        scene = world.builder.build(draws)
        counts = Counter(t.concept for t in scene.things)
        single = [t for t in scene.things if counts[t.concept] == 1]
        if single:
            return scene, draws.pick(single)
