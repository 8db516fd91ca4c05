"""Write the tables of docs/recipes.md from the schema and from the signatures of what a recipe can name.

    python tools/make_recipe_reference.py            # rewrites the part between the markers
    python tools/make_recipe_reference.py --check    # says whether the page is up to date

The prose around the markers is written by hand and stays.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import potstill.data.digits_source
import potstill.data.emoji_source
import potstill.data.files_source
import potstill.data.scene_source
import potstill.data.texts_source
import potstill.losses
from potstill.data.scenes import SceneDataset
from potstill.data.selection import SELECTIONS
from potstill.data.sources import DATA
from potstill.objectives import OBJECTIVES
from potstill.policies import POLICIES, Policy
from potstill.recipe import Recipe
from potstill.run.check import FIELDS, MAPS_FILLED_IN, NOT_OPEN
from potstill.students import STUDENTS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
START, END = "<!-- reference: made by tools/make_recipe_reference.py -->", "<!-- /reference -->"
SECTIONS = {
    "Recipe": "Top level",
    "TeacherSection": "teacher",
    "StudentSection": "student",
    "DataSection": "data",
    "ModuleSection": "modules.NAME",
    "ObjectiveSection": "objectives[i]",
    "PolicySection": "policy",
    "SelectionSection": "selection",
    "RolloutSection": "rollout",
    "TrainSection": "train",
    "EvaluateSection": "evaluate",
    "StageSection": "stages[i]",
}
# Where the schema leaves a field to its name, the page says a little more.
MEANING = {
    "Recipe.version": "Version of the recipe format.",
    "Recipe.name": "Name in plans, logs and reports.",
    "Recipe.seed": "Of the student's start, the data, the order of samples, the probe set and the policy.",
    "Recipe.student": "How the student is made.",
    "Recipe.data": "What is trained and measured on.",
    "Recipe.objectives": "The terms of the loss; at least one.",
    "Recipe.train": "Steps, batches, optimiser.",
    "Recipe.evaluate": "What is measured at the end.",
    "Recipe.stages": "Several stages in a row, each with what differs; the student goes from one to the next.",
    "ObjectiveSection.weight": "Its factor in the loss.",
    "PolicySection.reward": "Yardstick of the reward: the whole weighted loss (reference), the mean of the relative "
    "decrements of every term (per_term), or the prediction terms alone.",
    "PolicySection.reward_mode": "Decrement divided by the value before, or as it is.",
    "PolicySection.reward_clip": "Rewards are limited to ± this; null = not.",
    "TrainSection.steps": "Optimiser steps.",
    "TrainSection.accumulation": "Micro-batches per optimiser step. Gradients do not depend on how a batch is split, "
    "except for losses that couple its rows.",
    "TrainSection.learning_rate": "Peak learning rate of the student.",
    "TrainSection.part_learning_rate": "Learning rate of projectors and other parts; null = the same.",
    "TrainSection.schedule": "Course of the learning rate after the warm-up.",
    "TrainSection.warmup_steps": "Steps of linear warm-up.",
    "TrainSection.optimizer": "Which optimiser.",
    "TrainSection.weight_decay": "Decoupled weight decay.",
    "TrainSection.betas": "Momenta of AdamW.",
    "TrainSection.precision": "Precision of the student's arithmetic; weights stay fp32.",
    "TrainSection.gradient_checkpointing": "Trade time for memory, if the student can.",
    "TrainSection.log_every": "Steps between two lines of the history.",
    "TrainSection.checkpoint_every": "Steps between two checkpoints.",
    "EvaluateSection.samples": "Samples drawn from the split.",
    "EvaluateSection.batch_size": "Samples per forward pass.",
    "StageSection.name": "Name in the history and the folders.",
    "StageSection.teachers": "Replaces the recipe's.",
    "StageSection.selection": 'Replaces the recipe\'s; "none" = all samples.',
    "RolloutSection.max_new_tokens": "Most tokens to write.",
    "RolloutSection.temperature": "Of the sampling.",
    "RolloutSection.top_p": "Draw from the fewest most likely tokens that have this share together.",
    "StageSection.rollout": 'Replaces the recipe\'s; "none" = the student writes nothing.',
    "StageSection.data": "Fields of data that differ.",
    "StageSection.objectives": "Replace the recipe's.",
    "StageSection.policy": 'Replaces the recipe\'s; "none" = no policy.',
    "StageSection.train": "Fields of train that differ.",
    "StageSection.freeze": "Replaces the recipe's.",
    "StageSection.inputs": "Replaces the recipe's.",
}


def table(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    lines = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    return lines + [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows] + [""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def schema_tables() -> list[str]:
    schema = Recipe.model_json_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    if set(sections) != set(SECTIONS):
        sys.exit(f"sections changed: {sorted(set(sections) ^ set(SECTIONS))}")
    lines = []
    for name, path in SECTIONS.items():
        section = sections[name]
        required = section.get("required", [])
        lines += [f"### {path}", "", section["description"].split("\n\n")[0].replace("\n", " "), ""]
        rows = []
        for field, about in section["properties"].items():
            default = "needed" if field in required else _default(about)
            meaning = about.get("description") or MEANING.get(f"{name}.{field}") or SECTIONS.get(_target(about), "")
            if not meaning:
                sys.exit(f"{name}.{field} has no description")
            rows.append((f"`{field}`", _type(about), default, meaning))
        lines += table(rows)
    return lines


def _target(about: dict[str, Any]) -> str:
    found = re.search(r"#/\$defs/(\w+)", str(about))
    return found[1] if found else ""


def _default(about: dict[str, Any]) -> str:
    if "default" not in about:
        return "its defaults" if _target(about) else "empty"
    value = about["default"]
    if isinstance(value, dict) and value:
        return "its defaults"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml(v) for v in value)}]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_plain(value) else str(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _type(about: dict[str, Any]) -> str:
    if "$ref" in about:
        return f"section {SECTIONS[_target(about)]}"
    if "const" in about:
        return f"`{about['const']}`"
    if "enum" in about:
        return ", ".join(f"`{v}`" for v in about["enum"])
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_type(one) for one in about["anyOf"]))
    kind = about.get("type", "any")
    if kind == "array":
        inner = about.get("items") or (about.get("prefixItems") or [{}])[0]
        text = f"list of {_type(inner)}"
    elif kind == "object":
        inner = about.get("additionalProperties")
        text = f"mapping of {_type(inner)}" if isinstance(inner, dict) else "mapping"
    else:
        text = {"string": "text", "number": "number", "integer": "integer", "boolean": "true or false"}.get(kind, kind)
    return text + _limits(about)


def _limits(about: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {about[key]:g}" for key, sign in signs.items() if key in about and abs(about[key]) < 1e6]
    return f" {', '.join(found)}" if found else ""


def option_tables() -> list[str]:
    lines = ["## Options of what is named", ""]
    lines += ["Unknown or missing options are refused before anything is loaded, with the nearest known name.", ""]
    lines += ["### Options of student builders", ""]
    for name in STUDENTS:
        lines += _options(f'student: {{builder: "{name}"}}', STUDENTS.get(name), {"teacher", "data_fields"})
    lines += ["### Options of data sources", ""]
    for name in DATA:
        more = SceneDataset if name == "scenes" else None
        lines += _options(f'data: {{source: "{name}"}}', DATA.get(name), {"seed", "teacher_model"}, more)
    lines += ["### Options of policies", ""]
    common = _arguments(inspect.getdoc(Policy))
    lines += ["Every policy takes these:", ""]
    lines += table(_rows(Policy, {"arms", "seed"}, common))
    lines += ["What a policy has beside them, or reads otherwise:", ""]
    for name in POLICIES:
        own = _arguments(inspect.getdoc(POLICIES.get(name)))
        same = {n for n, text in own.items() if text == common.get(n) or text.startswith("As in ")}
        hidden = {"arms", "seed"} | same | (set(common) - set(own))
        lines += _options(f'policy: {{name: "{name}"}}', POLICIES.get(name), hidden)
    lines += ["### Options of losses", ""]
    lines += ["What a loss takes beside student, teacher, labels and mask, which the section itself names.", ""]
    lines += ["| `loss:` | options with defaults |", "| --- | --- |"]
    skipped = {"student", "teacher", "mask", "reduction", "target", "ignore_index", *MAPS_FILLED_IN}
    for name in sorted(set(potstill.losses.__all__) - NOT_ON_OUTPUTS):
        parameters = inspect.signature(getattr(potstill.losses, name)).parameters.values()
        if [p.name for p in parameters][:2] not in (["student", "teacher"], ["student_attn", "teacher_attn"]):
            continue
        shown = [
            f"`{p.name}` (needed)" if p.default is p.empty else f"`{p.name}: {_yaml(p.default)}`"
            for p in parameters
            if p.name not in skipped
        ]
        lines.append(f"| `{name}` | {', '.join(shown) or 'none'} |")
    for name in OBJECTIVES:
        parameters = inspect.signature(OBJECTIVES.get(name)).parameters.values()
        shown = [
            f"`{p.name}` (needed)" if p.default is p.empty else f"`{p.name}: {_yaml(p.default)}`"
            for p in parameters
            if p.name not in (*FIELDS, *NOT_OPEN)
        ]
        lines.append(f"| `{name}` | {', '.join(shown) or 'none'} |")
    lines += ["| `hidden` | none |", ""]
    if list(SELECTIONS):
        lines += ["### Options of selections", ""]
    for name in SELECTIONS:
        lines += _options(f'selection: {{name: "{name}"}}', SELECTIONS.get(name), {"seed", "domains"})
    return lines


def _options(title: str, target: Callable[..., Any], hidden: set[str], fallback: Any = None) -> list[str]:
    known = _arguments(inspect.getdoc(fallback) or "") if fallback is not None else {}
    rows = _rows(target, hidden, {**MORE, **known, **_arguments(inspect.getdoc(target) or "")})
    return [f"`{title}`", "", *table(rows)] if rows else [f"`{title}`: nothing.", ""]


def _rows(target: Callable[..., Any], hidden: set[str], about: dict[str, str]) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, parameter in inspect.signature(target).parameters.items():
        if name in hidden or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = "needed" if parameter.default is parameter.empty else f"`{_yaml(parameter.default)}`"
        if name not in about:
            sys.exit(f'{target.__name__}: the argument "{name}" is not described')
        rows.append((f"`{name}`", _words(str(parameter.annotation)), default, about[name]))
    return rows


def _words(annotation: str) -> str:
    """Say a Python annotation in the words of the schema tables."""
    for pattern, word in WORDS.items():
        annotation = re.sub(pattern, word, annotation)
    return annotation.replace(" | ", " or ")


WORDS = {
    r"Literal\['(\w+)'\]": r"`\1`",
    r"Mapping\[[^]]*\]": "mapping",
    r"Sequence\[str\]": "list of text",
    r"\bLayers\b": "integer or mapping",
    r"\bSizes\b": "integer or mapping",
    r"\bstr\b": "text",
    r"\bint\b": "integer",
    r"\bfloat\b": "number",
    r"\bbool\b": "true or false",
    r"\bNone\b": "null",
}
# These read several tensors or other things than an output; they are for code, or for loss: "hidden".
NOT_ON_OUTPUTS = {"module_hidden_loss", "nd_loss", "sample_tokens", "teacher_mixed_probs"}
MORE = {"max_tokens": "Longest text in tokens.", "size": "Number of training samples."}


def _arguments(doc: str) -> dict[str, str]:
    """Return the entries of the Args section of a docstring: name -> text on one line."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    if not section:
        return {}
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section[1].rstrip()):
        names, _, text = entry.strip().partition(":")
        for name in names.split(","):
            found[name.strip()] = " ".join(text.replace("``", "`").split())
    return found


def render() -> str:
    return "\n".join([START, "", *schema_tables(), *option_tables(), END])


def with_reference(page: str) -> str:
    """Return the page with what stands between the markers made anew."""
    before, found, rest = page.partition(START)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        sys.exit(f"{PAGE} lacks the markers")
    return before + render() + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if the page is out of date")
    page = PAGE.read_text(encoding="utf-8")
    new = with_reference(page)
    if parser.parse_args().check:
        sys.exit(0 if new == page else f"{PAGE} is out of date: run python tools/make_recipe_reference.py")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
