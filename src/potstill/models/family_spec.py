"""The form in which Potstill describes an architecture: a family and its modules."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

_PATHS = ("depth", "width", "heads", "ffn", "kv_heads", "head_dim", "own_tokens")


@dataclass(frozen=True)
class ModuleSpec:
    """One module of a family.

    Attributes:
        name: ``image_encoder``, ``text_encoder``, ``text_decoder``, ``multimodal_decoder``: the same word in every
            family, so that models of two families can be paired.
        blocks: Path of the list of blocks. In the table several are separated by ``|`` (a model class with a head
            keeps them elsewhere than the bare model); ``family_of`` leaves the one that this model has.
        mask: Key of the batch with the mask of the module's tokens, as ``token_mask`` reads it; None = all count.
        depth, width, heads, ffn: Paths in the configuration; None where the family has no such field.
        kv_heads, head_dim: The same for grouped key-value heads and for the size of one head.
        own_tokens: Path in the configuration of the number of tokens, not counted by ``mask``, that the model puts
            behind those of the batch; they all count. None = none. ``family_of`` leaves ``mask`` with the number.
        rows: Key of the batch with a mask whose entries are the module's rows, where these are not the batch's (a batch
            row may have several pictures); None = one row each.
        per_layer: Configuration fields with one entry a layer, which a shallower student must take a selection of.
        follows: Pairs of configuration paths (follower, leader): where the teacher has equal values, the follower
            keeps pace when the leader changes.
    """

    name: str
    blocks: str
    mask: str | None = None
    depth: str | None = "num_hidden_layers"
    width: str | None = "hidden_size"
    heads: str | None = "num_attention_heads"
    ffn: str | None = "intermediate_size"
    kv_heads: str | None = None
    head_dim: str | None = None
    own_tokens: str | None = None
    rows: str | None = None
    per_layer: tuple[str, ...] = ()
    follows: tuple[tuple[str, str], ...] = ()

    def inside(self, path: str, config: str) -> ModuleSpec:
        """Return the spec for a model held at ``path`` whose configuration is held at ``config``."""

        def at(field_path: str | None) -> str | None:
            return None if field_path is None else f"{config}.{field_path}"

        return dataclasses.replace(
            self,
            blocks="|".join(f"{path}.{p}" for p in self.blocks.split("|")),
            **{name: at(getattr(self, name)) for name in _PATHS},
            per_layer=tuple(f"{config}.{p}" for p in self.per_layer),
            follows=tuple((f"{config}.{a}", f"{config}.{b}") for a, b in self.follows),
        )


@dataclass(frozen=True)
class Part:
    """One model inside a composite model: its module name there, where it and its configuration are, its mask."""

    name: str
    path: str
    config: str
    mask: str | None = None


@dataclass(frozen=True)
class Family:
    """Models with the same layout.

    Attributes:
        name: Name in the registry.
        model_types: Values of ``config.model_type`` it describes.
        modules: Its modules, in the order data flows.
        parts: Models of other families inside it, described there.
        classes: Model classes it is limited to; empty = every class. A family with classes goes first.
        follows: As in ``ModuleSpec``, between modules.
        prediction: Tap on the logits of models that compute them but do not return them.
    """

    name: str
    model_types: tuple[str, ...]
    modules: tuple[ModuleSpec, ...] = ()
    parts: tuple[Part, ...] = ()
    classes: tuple[str, ...] = ()
    follows: tuple[tuple[str, str], ...] = ()
    prediction: str | None = None

    def module(self, name: str) -> ModuleSpec | None:
        """Return the module of that name, or None."""
        return next((spec for spec in self.modules if spec.name == name), None)
