import json

import pytest
from fake_run import change, picture, write_fake_run
from html_reader import assert_safe, read

from potstill.report import build_report
from potstill.report.samples import is_trusted_picture

PAYLOADS = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</style><script>alert(1)</script>",
    "</title></svg><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "]]>--><!--",
    "\ud800 lone surrogate",
)


def poison(value, payload, key=None):
    """Put the payload into every string of a JSON value, names of tasks, arms and terms included."""
    if isinstance(value, dict):
        fixed = {"version", "event", "role", "kind"}
        # Keys that belong to the schema stay; free names (tasks, arms, terms, kinds) are poisoned.
        free = key in ("tasks", "kinds", "terms", "posterior", "probe", "fidelity", "environment")
        return {
            (f"{payload}{name}" if free else name): (inner if name in fixed else poison(inner, payload, name))
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [poison(inner, payload) for inner in value]
    return f"{payload}{value}" if isinstance(value, str) else value


def poison_run(run, payload):
    for name in ("plan.json", "metrics.json", "samples.json", "environment.json", "attention.json"):
        value = json.loads((run / name).read_text(encoding="utf-8"))
        (run / name).write_text(json.dumps(poison(value, payload, name.removesuffix(".json"))))
    lines = (run / "history.jsonl").read_text().splitlines()
    poisoned = [json.dumps(poison(json.loads(line), payload)) + "\n" for line in lines]
    (run / "history.jsonl").write_text("".join(poisoned))
    printable = payload.encode("utf-8", "replace").decode()
    recipe = f"name: {json.dumps(printable)}\n# {printable}\n"
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_hostile_strings_stay_text_everywhere(run, other_run, payload):
    poison_run(run, payload)
    poison_run(other_run, payload)
    page = read(build_report([run, other_run]))
    assert_safe(page)
    assert not page.open
    shown = payload.encode("utf-8", "replace").decode()
    assert page.text.count(" ".join(shown.split())) > 30


def test_a_hostile_string_in_an_axis_label_or_svg_title_stays_text(run):
    poison_run(run, "<b>&\"'")
    html = build_report(run).read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;&amp;&#34;&#39;image_encoder</title>" in html
    assert "<b>" not in html


def test_a_hostile_folder_name_stays_text(tmp_path):
    run = write_fake_run(tmp_path / '"><img onerror=alert(1)>', "x")
    (run / "plan.json").unlink()
    page = read(build_report(run))
    assert_safe(page)
    assert '"><img onerror=alert(1)>' in page.text


@pytest.mark.parametrize(
    "uri",
    [
        "http://example.invalid/a.png",
        "javascript:alert(1)",
        "data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=",
        "data:text/html;base64,iVBORw0KGgoAAAA=",
        "data:image/png;charset=utf-8;base64,iVBORw0KGgoAAAA=",
        "data:image/png;base64,bm90IGEgcG5n",
        'data:image/png;base64,iVBORw0KGgoAAAA="onerror="alert(1)',
        "data:image/png;base64,iVBORw0KGgoAAAA=\n",
        " data:image/png;base64,iVBORw0KGgoAAAA=",
        "",
    ],
)
def test_only_plain_embedded_png_pictures_are_shown(run, uri):
    assert not is_trusted_picture(uri)
    change(run / "samples.json", lambda samples: samples[0].update(images=[uri]))
    page = read(build_report(run))
    assert_safe(page)
    assert "A picture was left out" in page.text


def test_a_huge_picture_is_left_out():
    assert is_trusted_picture(picture(0))
    assert not is_trusted_picture(picture(0) + "A" * 5_000_000)
