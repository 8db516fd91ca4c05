"""Sentences about two pictures, true or false.

The sentence is drawn first, then the label, then pictures that make it so: within every template, and for every word
in it, both labels are equally common.
"""

from __future__ import annotations

from collections.abc import Callable

from potstill.data.scenes.composer import Scene
from potstill.data.scenes.draws import Draws

Pair = tuple[tuple[Scene, Scene], str, int]  # left and right, sentence, label


def both(draws: Draws, world) -> Pair:
    """Both images contain a <thing>. False: three times in four only one does, else none."""
    concept, label = draws.below(len(world.concepts)), draws.below(2)
    if label:
        shown = (True, True)
    else:
        shown = draws.pick(((True, False), (False, True), (True, False), (False, True), (False, False)))
    pair = _pair_with(draws, world, concept, shown)
    truth = all(scene.count(concept) for scene in pair)
    return pair, f"both images contain {world.concepts[concept].with_article}", int(truth)


def one(draws: Draws, world) -> Pair:
    """Exactly one image contains a <thing>. False: both or none do."""
    concept, label = draws.below(len(world.concepts)), draws.below(2)
    shown = draws.pick(((True, False), (False, True)) if label else ((True, True), (False, False)))
    pair = _pair_with(draws, world, concept, shown)
    truth = sum(bool(scene.count(concept)) for scene in pair) == 1
    return pair, f"exactly one image contains {world.concepts[concept].with_article}", int(truth)


def each(draws: Draws, world) -> Pair:
    """The left image has a <thing> and the right image another. False: one of them is missing, or they are swapped."""
    builder = world.builder
    left = draws.below(len(world.concepts))
    right = builder.another(draws, (), avoid={left})
    wanted = [left, right]
    if not draws.below(2):
        wrong = draws.below(3)
        if wrong == 2:
            wanted = [right, left]
        else:
            wanted[wrong] = builder.another(draws, (), avoid={left, right})
    pair = tuple(builder.build(draws, wanted=[concept], avoid={left, right}) for concept in wanted)
    truth = pair[0].count(left) > 0 and pair[1].count(right) > 0
    names = [world.concepts[c].with_article for c in (left, right)]
    return pair, f"the left image has {names[0]} and the right image {names[1]}", int(truth)


def more(draws: Draws, world) -> Pair:
    """One image has more objects than the other. False: fewer, or as many."""
    builder = world.builder
    side, label = draws.below(2), draws.below(2)
    low, high = _two_numbers(draws, builder)
    if not label and draws.chance(30):
        high = low
    numbers = (high, low) if (side == 0) == bool(label) else (low, high)
    pair = tuple(builder.build(draws, count=number) for number in numbers)
    counts = [len(scene.things) for scene in pair]
    first, second = (("left", "right"), ("right", "left"))[side]
    truth = counts[side] > counts[1 - side]
    return pair, f"the {first} image has more objects than the {second}", int(truth)


def same(draws: Draws, world) -> Pair:
    """Both images have the same number of objects."""
    builder = world.builder
    low, high = _two_numbers(draws, builder)
    if draws.below(2):
        numbers = (low, low) if draws.below(2) else (high, high)
    else:
        numbers = (low, high) if draws.below(2) else (high, low)
    pair = tuple(builder.build(draws, count=number) for number in numbers)
    truth = len(pair[0].things) == len(pair[1].things)
    return pair, "both images have the same number of objects", int(truth)


def background(draws: Draws, world) -> Pair:
    """Both images have the same background."""
    builder = world.builder
    label = draws.below(2)
    left, right = builder.build(draws), builder.build(draws)
    while (left.background == right.background) != bool(label):
        if label:
            right = Scene(right.things, right.vendor, left.background)
        else:
            right = builder.build(draws, cells=[t.cell for t in right.things], count=len(right.things))
    return (left, right), "both images have the same background", int(left.background == right.background)


KINDS: dict[str, Callable[..., Pair]] = {
    "both": both,
    "one": one,
    "each": each,
    "more": more,
    "same": same,
    "background": background,
}
COMPARES_NUMBERS = ("more", "same")  # make no sense where every picture has the same number of things


def _pair_with(draws: Draws, world, concept: int, shown: tuple[bool, bool]) -> tuple[Scene, Scene]:
    builder = world.builder
    return tuple(
        builder.build(draws, wanted=[concept]) if here else builder.build(draws, avoid={concept}) for here in shown
    )


def _two_numbers(draws: Draws, builder) -> tuple[int, int]:
    """Return two different numbers of things, the smaller first, all such pairs equally likely."""
    low, high = builder.min_objects, builder.max_objects
    one = draws.below(high - low + 1)
    other = (one + 1 + draws.below(high - low)) % (high - low + 1)
    return low + min(one, other), low + max(one, other)
