"""Links lead somewhere, examples run, recipes are valid, commands exist: for every document of the repository."""

import re
import shlex
import shutil

import pytest
from documents import DOCUMENTS, NOT_RUN, ROOT, anchors, blocks, having, links, name_of

SHORT = {
    '"train.steps=200"': '"train.steps=4", "train.batch_size=8", "evaluate.samples=48", "policy.round_steps=2"',
    "max_steps=": "save_strategy='no', max_steps=",
}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_between_documents_resolve(path):
    for link in links(path):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        target, _, fragment = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.is_relative_to(ROOT), f"{link} leaves the repository"
        assert there.exists(), f"{link} leads nowhere"
        if fragment:
            assert fragment in anchors(there), f"{link}: no such heading in {there.name}"


@pytest.mark.parametrize("path", having("python"), ids=name_of)
def test_python_examples_run(path, tiny_teacher, finished_run, tmp_path, monkeypatch):
    """The blocks of a page run in order, in one namespace; only the numbers of steps and samples are made smaller."""
    monkeypatch.chdir(tmp_path)
    _keep_registries(monkeypatch)
    namespace = _given(name_of(path), tmp_path, finished_run)
    for block in blocks(path, "python"):
        if block.text.startswith(NOT_RUN):
            continue
        text = block.text
        for long, short in SHORT.items():
            text = text.replace(long, short)
        exec(compile("\n" * (block.line - 1) + text, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", having("yaml"), ids=name_of)
def test_recipes_are_valid(path):
    """A block with a version is a whole recipe; any other is a part of one. What it names is there in a run."""
    import potstill.losses
    import potstill.run
    from potstill.data.sources import DATA
    from potstill.objectives import OBJECTIVES
    from potstill.policies import POLICIES
    from potstill.recipe import validate
    from potstill.recipe.load import read_yaml
    from potstill.students import STUDENTS

    rest = {"version": 1, "objectives": [{"loss": "model_loss"}]}
    for block in blocks(path, "yaml"):
        data = read_yaml(block.text, f"{name_of(path)}, line {block.line}")
        recipe = validate(data if "version" in data else {**rest, **data})
        assert recipe.data.source in DATA
        assert recipe.student.builder in STUDENTS
        assert recipe.policy is None or recipe.policy.name in POLICIES
        for objective in recipe.objectives:
            assert objective.loss in (*potstill.losses.__all__, *OBJECTIVES, "hidden")


@pytest.mark.parametrize("path", having("bash"), ids=name_of)
def test_commands_and_their_options_exist(path):
    import typer

    from potstill.cli.app import app

    root = typer.main.get_command(app)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(path, "bash"):
        for line in block.text.splitlines():
            words = shlex.split(line.split(" > ")[0], comments=True)
            if not words:
                continue
            if "potstill" in words[:4] or words[0] in ("torchrun", "accelerate"):
                _parse(root, words[words.index("potstill") + 1 :])
            elif words[0] == "make":
                assert words[1] in targets, line
            elif words[0] == "python":
                assert (ROOT / words[1]).is_file(), line
            else:
                assert words[:2] == ["pip", "install"], f"unknown command: {line}"


def test_extras_in_the_documents_exist():
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in DOCUMENTS:
        for named in re.findall(r'pip install "\.\[([\w,]+)\]"', path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= set(extras), f"{name_of(path)}: {named}"


def test_every_page_is_in_the_navigation():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == pages


def test_the_readme_starts_with_the_two_commands():
    first = blocks(ROOT / "README.md", "bash")[0].text
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]
    example = blocks(ROOT / "README.md", "python")[0].text
    assert len([line for line in example.splitlines() if line.strip()]) <= 15


def _parse(command, words):
    """Let click read the words as the command line would; an unknown command, option or value raises."""
    import click

    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"no command {name}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    if not isinstance(command, click.Group):
        command.make_context(command.name, list(words), parent=context.parent)


def _keep_registries(monkeypatch):
    """Take back what an example registers."""
    import potstill.data.files_source
    import potstill.run  # noqa: F401 - likewise
    from potstill.data.sources import DATA
    from potstill.models.families import FAMILIES
    from potstill.policies import POLICIES
    from potstill.students import STUDENTS

    for registry in (DATA, FAMILIES, POLICIES, STUDENTS):
        monkeypatch.setattr(registry, "_items", dict(registry._items))


def _given(name, folder, finished_run):
    """What a page's examples take for granted."""
    if name == "docs/policies/optima.md":
        losses = iter(range(100, 0, -1))
        return {"rounds": 6, "probe_loss": lambda: float(next(losses)), "train": lambda steps, modules: None}
    if name in ("docs/run-folder.md", "docs/report.md"):
        for run in ("first", "optima", "kd"):
            shutil.copytree(finished_run, folder / "runs" / run)
    return {}
