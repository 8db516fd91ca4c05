"""Mutated recipes for ``fuzz_recipes.py``: values, keys, bytes and overrides that careless or hostile hands write."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LONG = "x" * 100_000
NUMBERS = """
    0 -0 -1 1 2 7 255 1e400 -1e400 .inf -.inf .nan 1e-400 1e308 5e-324 0.5 1_000 0x10 0o17 017 0b11 1:30:00
    2147483648 4294967296 9223372036854775808 -9223372036854775809 1000000000000 1e12 1000000000
""".split()  # noqa: SIM905
NUMBERS += ["9" * 400, "9" * 5000, "0x" + "f" * 5000, "0b" + "1" * 20000]
WORDS = """
    null ~ true false yes on Null '' "" "\\t" "1" '1.0' "null" [] {} [[]] [{}] [null] {a:1} {"":1} [1,2,3] [a,b]
    [true] {"a":{"b":{"c":1}}} = << 2024-01-01 2024-99-99 12:30 all auto none modules all_subsets
""".split()  # noqa: SIM905
PATHS = """
    ../../x /etc/passwd /etc ~ ~/x ~nobody-has-this-name/x file:///etc/passwd https://example.invalid/x
    /dev/zero /dev/null /proc/self/mem . .. / // ./ ../../../../../../etc/shadow C:\\Windows \\\\host\\share a/b/c
    x.gguf ./x.gguf -rf --help $HOME $(id) `id` %s%n {0} *.py **/* [!a] %2e%2e%2f
""".split()  # noqa: SIM905
TEXTS = [
    *("a\\nb", "a\\0b", "\\e[2J\\e]0;owned\\a", "\\r\\n", "\\u202eevil", "\\u200b", "\\ud800", "\\udfff", "\\ufeff"),
    *("tr\\u0430in", "\\u00e9" * 300, "\\U0001F600", "[/bold]", "[red]x", "[link=x]", "<script>", "{{7*7}}", "\\x85"),
]
TAGGED = [
    *('!!python/object/apply:os.system ["touch owned"]', "!!python/name:os.system", "!!python/module:os {}"),
    *("!!bool x", "!!int x", '!!int ""', "!!float x", '!!float ""', "!!timestamp x", "!!binary aGk=", "!!binary é"),
    *("!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!map [a, b]", "!!map ab", "!!seq {a: 1}", "!!seq ab"),
    *("!!str [a]", "!!null x", "!mine x", "!!merge x", "!!value x", "! x", "!<tag:yaml.org,2002:bool> x"),
    *("&a x", "*a", "&a [*a]", "{<<: {a: 1}}", "{? [a] : b}", "{1: 2}", "{null: 1}", "{true: 1}", "{.nan: 1}"),
]
NESTED = ["[" * n + "]" * n for n in (20, 100, 250, 300, 3000)] + ["{a: " * n + "1" + "}" * n for n in (30, 200, 900)]
VALUES = [*NUMBERS, *WORDS, *(f"'{p}'" for p in PATHS), *(f'"{t}"' for t in TEXTS), *TAGGED, *NESTED, LONG]
KEYS = [
    *("stps", "", " ", "__class__", "__proto__", "model_config", "self", "1", "null", "a.b", "a[0]", "<<", "="),
    *("'../x'", LONG[:2000], "seed", "name", "version", "stages", "data_fields", *(f'"{t}"' for t in TEXTS)),
]
JUNK = [
    *(b"\0", b"\x1b[2J", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\r", b"\x85", b"\xed\xa0\x80", b"@", b"`", b"#"),
    *(b"*x", b"&x ", b"- ", b": ", b"{", b"}", b"[", b"|\n", b">", b"'", b'"', b"!!", b"? "),
    *(b"%YAML 9.9\n", b"---\n", b"...\n"),
]
# Values of the type that stands there already: they get past the schema.
SAME_TYPE: dict[type, list[Any]] = {
    bool: [True, False],
    int: [0, -1, 1, 2, 3, 5, 7, 17, 1000, 10**6, 2**31 - 1, 2**31, 2**32, 10**12, 2**63 - 1, -(2**63)],
    float: [0.0, -0.0, 1e-300, 5e-324, 1e-8, 0.5, 1.0, 1.5, 1e30, 1e300, -1.0],
    str: [
        *(*PATHS, "", " ", "x", "a.b", "a" * 300, LONG, "é", "\u202ex", "\U0001F600", "a\nb", "[/b]", "[red]x"),
        *("logits", "task_logits.vqa", "vqa_labels", "caption_labels", "image_encoder", "text_decoder.blocks.*"),
        *("labels", "input_ids", "linear", "mlp", "hidden", "kd_kl", "dkd", "depth", "new", "pretrained", "config"),
        *("train", "test", "heldout_language", "vqa", "retrieval", "uniform", "thompson", "fixed", "all", "none"),
    ],
    list: [[], [[]], ["x"], [0], [None], [[0, 0]], ["vqa", "vqa"], ["input_ids"], ["*"], ["../x"]],
    dict: [{}, {"a": 1}, {"": ""}, {"../x": "../x"}, {"image_encoder": 1}],
}  # fmt: skip
_RAW = "raw-value-goes-here"


@dataclass
class Case:
    """One thing to feed: what stands in the recipe file (or how to make it), and overrides."""

    name: str
    content: bytes = b""
    overrides: list[str] = field(default_factory=list)
    make: Callable[[Path], None] | None = None


def make_cases(seed: int, number: int, bases: Mapping[str, Mapping[str, Any]]) -> Iterator[Case]:
    """Make mutated recipes; the same arguments give the same cases.

    Args:
        seed: Of the choices.
        number: How many.
        bases: Whole recipes by name, every field written out.
    """
    yield from list(odd_files())[:number]
    names, made = sorted(bases), sum(1 for _ in odd_files())
    for i in range(made, number):
        draw = random.Random(f"{seed} {i}")
        base = names[i % len(names)]
        kind = draw.choices((_changed_value, _same_type, _changed_key, _changed_text, _overridden), (4, 4, 2, 2, 4))[0]
        case = kind(draw, bases[base])
        case.name = f"{i} {base} {case.name}"
        yield case


def odd_files() -> Iterator[Case]:
    """Things that are no recipe at all, or only by their bytes."""
    rows = zip("abcdefgh", "bcdefghi")
    texts = {
        "billion laughs": "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in rows),
        **{"empty": "", "2 MiB": "# " + "x" * (2 << 20), "a list": "- a\n", "two documents": "---\n---\n"},
        **{"1 MiB of brackets": "[" * ((1 << 20) - 1), "1 MiB of braces": "{" * ((1 << 20) - 1)},
        **{"a long key": f"{LONG}: 1\n", "a long line": f"name: {LONG}\n", "a deep list": "- " * 5000},
    }
    for name, text in texts.items():
        yield Case(name, text.encode())
    for coding in ("utf-16", "utf-32", "latin-1"):
        yield Case(coding, "version: 1\nname: é\n".encode(coding))
    for name, make in {
        "a folder": lambda path: path.mkdir(),
        "a dangling link": lambda path: path.symlink_to(path.parent / "nowhere"),
        "a link to itself": lambda path: path.symlink_to(path),
        "a pipe": os.mkfifo,
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "nothing": lambda path: None,
    }.items():
        yield Case(name, make=make)
    for name in ("", "~nobody-has-this-name/x", "x" * 5000, "a\nb", "\udc80", "../" * 2000 + "x"):
        yield Case(f"called {name[:20]!a}", overrides=[], make=lambda path, name=name: name)


def _changed_value(draw: random.Random, base: Mapping[str, Any]) -> Case:
    data, value = copy.deepcopy(dict(base)), draw.choice(VALUES)
    holder, key = draw.choice(_places(data))
    holder[key] = _RAW
    return Case(f"{key} = {value[:40]!a}", dump(data).replace(_RAW.encode(), value.encode("utf-8", "surrogatepass")))


def _same_type(draw: random.Random, base: Mapping[str, Any]) -> Case:
    data, done = copy.deepcopy(dict(base)), []
    for _ in range(draw.choice((1, 1, 2, 3))):
        holder, key = draw.choice(_places(data))
        kind = draw.choice(list(SAME_TYPE)) if holder[key] is None else type(holder[key])
        value = draw.choice(SAME_TYPE[kind])
        done.append(f"{key} = {value!r:.40}")
        holder[key] = copy.deepcopy(value)
    return Case(ascii(", ".join(done)), dump(data))


def _changed_key(draw: random.Random, base: Mapping[str, Any]) -> Case:
    data = copy.deepcopy(dict(base))
    sections = [data, *(h[k] for h, k in _places(data) if isinstance(h[k], dict))]
    section = draw.choice(sections)
    key, how = draw.choice(KEYS), draw.choice(("add", "add", "rename", "drop", "twice"))
    if how == "add":
        section[_RAW] = draw.choice((None, 1, "x", {}, []))
    elif section:
        old = draw.choice(list(section))
        value = section.pop(old)
        if how == "rename":
            section[_RAW] = value
        if how == "twice":
            section[old], section[_RAW], key = value, value, str(old)
    return Case(f"{how} the key {key[:40]!a}", dump(data).replace(_RAW.encode(), key.encode()))


def _changed_text(draw: random.Random, base: Mapping[str, Any]) -> Case:
    lines = dump(base).splitlines(keepends=True)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at, how = draw.randrange(len(lines)), draw.choice(("junk", "flip", "drop", "double", "swap", "cut", "indent"))
        line = lines[at]
        place = draw.randrange(len(line) + 1)
        if how == "junk":
            lines[at] = line[:place] + draw.choice(JUNK) + line[place:]
        elif how == "flip" and line:
            place %= len(line)
            lines[at] = line[:place] + bytes([line[place] ^ (1 << draw.randrange(8))]) + line[place + 1 :]
        elif how == "drop" and len(lines) > 1:
            del lines[at]
        elif how == "double":
            lines.insert(at, line)
        elif how == "swap":
            other = draw.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif how == "cut":
            lines = [*lines[:at], line[:place]]
        else:
            lines[at] = b" " * draw.choice((1, 2, 40)) + line
    return Case("changed text", b"".join(lines))


def _overridden(draw: random.Random, base: Mapping[str, Any]) -> Case:
    overrides = []
    for _ in range(draw.choice((1, 1, 1, 3))):
        path = draw.choice(_paths(base))
        if draw.random() < 0.2:
            odd = [
                "",
                ".",
                "[0]",
                "[-1]",
                f"[{'9' * 5000}]",
                "[٣]",
                ".x.y",
                "[99]",
                " ",
                "=",
                ".__class__",
                "\n",
                "\udc80",
            ]
            path = draw.choice((path + draw.choice(odd), draw.choice(odd) + path, draw.choice(odd), draw.choice(KEYS)))
        value = draw.choice([*VALUES, "", "[", "'", "\n", "1\nseed: 2", "x\n---\ny", "\0", "\udc80", "a=b"])
        overrides.append(draw.choice((f"{path}={value}", f"{path}={value}", f"{path}={value}", path)))
    return Case(f"--set {overrides[0][:60]!a}", dump(base), overrides)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a nested structure."""
    rows = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, inner in rows for place in [(node, key), *_places(inner)]]


def _paths(node: Any, path: str = "") -> list[str]:
    if isinstance(node, dict):
        return [p for k, v in node.items() for p in [f"{path}.{k}".lstrip("."), *_paths(v, f"{path}.{k}".lstrip("."))]]
    if isinstance(node, list):
        return [p for i, v in enumerate(node) for p in [f"{path}[{i}]", *_paths(v, f"{path}[{i}]")]]
    return []


def dump(data: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=10**6).encode("utf-8", "surrogatepass")


VARIANTS = {
    "kd-scenes": [],
    "optima-scenes": [],
    "teach-scenes": ["stages=null"],
    "stages": [],
    "depth": ["student={builder: depth, layers: {image_encoder: [0]}, seed: 1}"],
    "config": ["student={builder: config, overrides: {dropout: 0.1, image_layers: 1}, copy_matching: true}"],
    "new": ["student={builder: new, family: bert, fields: {hidden_size: 16, num_hidden_layers: 1}, seed: 0}"],
    "pretrained": ["student={builder: pretrained, model: coca-scenes, revision: null}"],
    "width": ["student={builder: width, width: 96, heads: 3, ffn: 96, layers: {image_encoder: 1}, init: random}"],
    "modules": ["modules={image_encoder: {student: image_encoder.blocks, teacher: 'image_encoder.blocks.*'}}",
                "policy={name: fixed, arm: 0, arms: [[image_encoder]], noise_std: 0.1, min_count: 0.01, gamma: 0.9}"],
    "data": ["data={source: scenes, size: 100, max_tokens: 40, min_objects: 1, max_objects: 4, vendors: null, kinds:"
             " null, languages: [en], masks: false, phrases: false, tasks: [vqa], image_size: 48, concepts: 96}"],
    "losses": ["objectives=[{loss: dkd, on: task_logits.vqa, labels: vqa_labels, alpha: 1.0, beta: 8.0,"
               " temperature: 4.0}, {loss: hidden, projector: mlp, modules: [image_encoder]}]"],
}  # fmt: skip
"""Recipes to start from, by overrides of a packaged one, so that every builder's options are there to be changed."""


def make_bases(*overrides: str) -> dict[str, dict[str, Any]]:
    """Return recipes to start from, with all fields written out; ``overrides`` come before those of ``VARIANTS``."""
    from potstill.recipe import dump_recipe, load_recipe, packaged_recipes

    bases = {}
    for name, changes in VARIANTS.items():
        of = {"new": "teach-scenes", "stages": "teach-scenes"}.get(
            name, name if name in packaged_recipes() else "optima-scenes"
        )
        own = [o for o in overrides if of != "teach-scenes" or not o.startswith(("teacher", "student", "data"))]
        bases[name] = yaml.safe_load(dump_recipe(load_recipe(of, [*own, *changes])))
    return bases
