"""Hybrid Distill in a run: final features of one teacher, token relations of another, part of the tokens dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from potstill.errors import RecipeError, ShapeError
from potstill.losses import token_relation_loss, whitened_feature_loss
from potstill.models.families import family_of
from potstill.objectives.base import OBJECTIVES, Objective, Role, Seen, Where, outputs_and_taps, read_output
from potstill.objectives.token_masking import TokenMasking, usual_stages
from potstill.taps import Signal

_QUERIES = ("q_proj", "query", "q", "to_q", "q_lin")


class _OfTokens(Objective):
    """What both terms share: where layers are, which tokens are dropped, which of the teacher's are meant."""

    role: Role = "hidden"

    def __init__(
        self,
        name: str,
        weight: float,
        mask_ratio: float,
        stages: Sequence[int] | None,
        keep_ratios: Sequence[float] | None,
        blocks: str | None,
        teacher_blocks: str | None,
        own_tokens: int,
        teacher_own_tokens: int,
    ):
        super().__init__(name, weight=weight)
        for field, value in (("own_tokens", own_tokens), ("teacher_own_tokens", teacher_own_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise RecipeError("is no number of tokens", where=f"{name}.{field}", got=value)
        if (stages is None) != (keep_ratios is None):
            raise RecipeError("stages and keep_ratios go together", where=f"{name}.keep_ratios")
        usual_stages(3, mask_ratio)  # refuses a ratio that is none
        self.mask_ratio, self.stages, self.keep_ratios = mask_ratio, stages, keep_ratios
        self.blocks, self.teacher_blocks = blocks, teacher_blocks
        self.own_tokens, self.teacher_own_tokens = own_tokens, teacher_own_tokens

    def meet(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Find the layers of both models, and set up the masking."""
        teacher = teachers[self.of[0]]
        self.blocks = self.blocks or find_blocks(student, "student", "blocks")
        self.teacher_blocks = self.teacher_blocks or find_blocks(teacher, "teacher", "teacher_blocks")
        self.depth = len(student.get_submodule(self.blocks))
        self.teacher_depth = len(teacher.get_submodule(self.teacher_blocks))
        if self.stages is not None:
            stages, ratios = tuple(self.stages), tuple(self.keep_ratios)
        else:
            stages, ratios = usual_stages(self.depth, self.mask_ratio)
        if stages[-1] >= self.depth:
            raise RecipeError("the student has no such layer", where="stages", expected=f"0 to {self.depth - 1}",
                              got=stages[-1])  # fmt: skip
        self.around = TokenMasking(self.blocks, stages, ratios, self.own_tokens) if ratios[-1] < 1 else None

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count the rows."""
        return Where().count(batch)

    def places(self, seen: Seen, layer: int | None) -> tuple[Tensor | None, int | None]:
        """Return where the student's tokens are in its full sequence, and how long that is; None if all are there."""
        kept = None if self.around is None else seen.student.notes.get(self.around)
        if kept is None or not kept.stages:
            return None, None
        return kept.at(layer), kept.places

    def pair(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], ids: Tensor | None, places: int | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Bring both sides to one grid: a class token counts only where both have one."""
        own, other = self.own_tokens, self.teacher_own_tokens
        grid = (student[0].shape[1] if places is None else places) - own
        if teacher[0].shape[1] - other != grid:
            raise ShapeError(
                "student and teacher see different grids",
                expected=f"{grid} patches, as the student",
                got=teacher[0].shape[1] - other,
                hint="Check own_tokens and teacher_own_tokens: tokens that are no patches, such as the class token.",
            )
        if own == other:
            return list(student), list(teacher), ids
        ids = None if ids is None else ids[:, own:] - own
        return [x[:, own:] for x in student], [x[:, other:] for x in teacher], ids


@OBJECTIVES.register("hybrid_feature")
class HybridFeatureObjective(_OfTokens):
    """Smooth L1 between the student's final tokens, projected, and the teacher's, whitened (arXiv 2306.15876).

    The feature term of Hybrid Distill, for a contrastive or supervised teacher. The projection is a part: trained with
    the student, dropped at export. See ``whitened_feature_loss``.

    Args:
        name: Its name in logs.
        on: The student's final tokens, ``[B, n, D_s]``; None = what its last layer returns.
        teacher_on: The teacher's, ``[B, N, D_t]``; None = as for the student.
        beta: Where the square turns into a line.
        mask_ratio: Share of the patches that is gone at the end, in training; 0 = all stay.
        stages: Layers before which patches are dropped; None = at the start and after each third.
        keep_ratios: Shares of all patches that those see; None = falling evenly to 1 - mask_ratio.
        blocks: Path of the student's layers; None = as its family says.
        teacher_blocks: The same of the teacher.
        own_tokens: Tokens of the student before the patches (class token); never dropped.
        teacher_own_tokens: The same of the teacher. If the numbers differ only patches are compared.
        weight: Factor in the loss (α).
    """

    loss_name = "whitened_feature_loss"

    def __init__(
        self,
        name: str,
        *,
        on: str | None = None,
        teacher_on: str | None = None,
        beta: float = 1.0,
        mask_ratio: float = 0.3,
        stages: Sequence[int] | None = None,
        keep_ratios: Sequence[float] | None = None,
        blocks: str | None = None,
        teacher_blocks: str | None = None,
        own_tokens: int = 1,
        teacher_own_tokens: int = 1,
        weight: float = 1.0,
    ):
        super().__init__(
            name, weight, mask_ratio, stages, keep_ratios, blocks, teacher_blocks, own_tokens, teacher_own_tokens
        )
        self.on, self.teacher_on, self.beta = on, teacher_on, beta

    def meet(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Find the final tokens of both models."""
        super().meet(student, teachers)
        self.on = self.on or f"{self.blocks}.{self.depth - 1}@output"
        self.teacher_on = self.teacher_on or f"{self.teacher_blocks}.{self.teacher_depth - 1}@output"
        self.student_outputs, self.student_taps = outputs_and_taps(self.on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(self.teacher_on)

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module:
        """Return the projection to the teacher's width."""
        return nn.Linear(read_output(student, self.on).shape[-1], read_output(teacher, self.teacher_on).shape[-1])

    def total(self, seen: Seen, part: nn.Module | None) -> Tensor:
        """Sum over rows of the mean over kept tokens and channels."""
        student, teacher = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        (student,), (teacher,), ids = self.pair([student], [teacher], *self.places(seen, None))
        rows = whitened_feature_loss(student, teacher, part.weight, part.bias, ids, self.beta, reduction="none")
        return rows.mean(1).sum()


@OBJECTIVES.register("hybrid_relation")
class HybridRelationObjective(_OfTokens):
    """KL between the relations of kept tokens in one layer of student and teacher (arXiv 2306.15876).

    The relation term of Hybrid Distill, for a masked-image teacher. See ``token_relation_loss``.

    Args:
        name: Its name in logs.
        layer: The student's layer, from 0; None = 0.75 of its depth.
        teacher_layer: The teacher's; None = at the same share of its depth.
        relation_heads: R; None = as many as the student has attention heads.
        mask_ratio, stages, keep_ratios: As for ``hybrid_feature``; the same in both.
        blocks, teacher_blocks, own_tokens, teacher_own_tokens: Likewise.
        weight: Factor in the loss (β).
    """

    loss_name = "token_relation_loss"

    def __init__(
        self,
        name: str,
        *,
        layer: int | None = None,
        teacher_layer: int | None = None,
        relation_heads: int | None = None,
        mask_ratio: float = 0.3,
        stages: Sequence[int] | None = None,
        keep_ratios: Sequence[float] | None = None,
        blocks: str | None = None,
        teacher_blocks: str | None = None,
        own_tokens: int = 1,
        teacher_own_tokens: int = 1,
        weight: float = 1.0,
    ):
        super().__init__(
            name, weight, mask_ratio, stages, keep_ratios, blocks, teacher_blocks, own_tokens, teacher_own_tokens
        )
        self.layer, self.teacher_layer, self.relation_heads = layer, teacher_layer, relation_heads

    def meet(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Find the queries, keys and values of both layers."""
        super().meet(student, teachers)
        self.layer = int(0.75 * self.depth) if self.layer is None else self.layer
        if self.teacher_layer is None:
            self.teacher_layer = self.layer * self.teacher_depth // self.depth
        sides = (
            ("layer", student, self.blocks, self.layer, self.depth),
            ("teacher_layer", teachers[self.of[0]], self.teacher_blocks, self.teacher_layer, self.teacher_depth),
        )
        for field, _, _, layer, depth in sides:
            if not 0 <= layer < depth:
                raise RecipeError("there is no such layer", where=field, expected=f"0 to {depth - 1}", got=layer)
        self.student_taps, self.teacher_taps = (
            projections(model, f"{blocks}.{layer}", field) for field, model, blocks, layer, _ in sides
        )
        if self.relation_heads is None:
            config = getattr(student, "config", None)
            config = getattr(config, "vision_config", None) or config
            self.relation_heads = getattr(config, "num_attention_heads", None)
            if self.relation_heads is None:
                raise RecipeError("the student does not say how many heads it has", where="relation_heads")

    def total(self, seen: Seen, part: nn.Module | None) -> Tensor:
        """Sum over rows of the mean over heads and kept tokens, in nats."""
        student = [seen.student.tapped[tap] for tap in self.student_taps]
        teacher = [seen.teacher.tapped[tap] for tap in self.teacher_taps]
        student, teacher, ids = self.pair(student, teacher, *self.places(seen, self.layer))
        return token_relation_loss(*student, *teacher, self.relation_heads, ids, reduction="sum")


def find_blocks(model: nn.Module, side: str, field: str) -> str:
    """Return the path of the layers of a model's image encoder, as its family says."""
    family = family_of(model)
    modules = {} if family is None else {spec.name: spec.blocks for spec in family.modules}
    if len(modules) == 1:
        return next(iter(modules.values()))
    if "image_encoder" in modules:
        return modules["image_encoder"]
    raise RecipeError(
        f"it is not known where the layers of the {side} are", where=field, got=type(model).__name__,
        expected="the path of a list of layers",
    )  # fmt: skip


def projections(model: nn.Module, block: str, field: str) -> tuple[str, str, str]:
    """Return the paths of the modules that make queries, keys and values in a block."""
    for name, _ in model.get_submodule(block).named_modules():
        parent, _, last = name.rpartition(".")
        if last not in _QUERIES:
            continue
        path = f"{block}.{parent}." if parent else f"{block}."
        others = ("key", "value") if last == "query" else (last.replace("q", "k"), last.replace("q", "v"))
        names = tuple(path + each for each in (last, *others))
        known = {each for each, _ in model.named_modules()}
        if known.issuperset(names):
            return names
    raise RecipeError(
        "no separate projections of queries, keys and values were found", where=field, got=block,
        expected="modules such as q_proj, k_proj and v_proj",
    )  # fmt: skip
