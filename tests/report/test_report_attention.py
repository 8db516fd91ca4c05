"""The section on attention: what it draws, what it leaves out, and that nothing in the file can harm the page."""

import json
import re

import pytest
from fake_run import change, picture, write_fake_run
from html_reader import assert_safe, read

from potstill.report import build_report
from potstill.report.heat import head_matrix, veiled, word_matrix


def attention(run):
    return json.loads((run / "attention.json").read_text())


def paths(markup, style):
    return re.findall(rf'<path d="([^"]*)" class="{style}" opacity="([^"]*)">', str(markup))


def test_every_map_is_drawn_for_both_models_with_a_text_that_says_it(run):
    page = read(build_report(run))
    assert_safe(page)
    assert "attention" in page.ids
    spoken = [label for label in page.labels if label.startswith(("Teacher, “", "Student, “"))]
    rows = [row for sample in attention(run)["shown"] for maps in sample["maps"] for row in maps["rows"]]
    assert len(spoken) == 2 * sum("query" in row for row in rows)
    assert len([label for label in page.labels if "words that look at words: most from “" in label]) == 4
    assert any(re.search(r"most at row \d, column \d of picture 2 \(\d+%\)", label) for label in spoken)
    assert "teacher head 3, student head 2" in page.text
    assert "multimodal_decoder.blocks.1 (cross)" in page.text
    assert "teacher: multimodal_decoder.blocks.3 (cross) · words → picture" in page.text


def test_the_likest_head_and_the_distance_are_said_in_words(run):
    data, labels = attention(run), read(build_report(run)).labels
    row = data["pairs"][0]["similarity"][0]
    best = row.index(max(row)) + 1
    assert any(f"teacher head 1 is most like student head {best} ({max(row):.2f})" in label for label in labels)
    heads = data["distance"][0]["teacher_heads"]
    mean = f"{sum(heads) / len(heads):.2f}"
    assert any(
        f"image_encoder.blocks.0 (self): mean of the teacher's heads {mean}" in label
        for label in labels
        if label.startswith("Attention distance in patches.")
    )


def test_a_picture_is_written_once_however_many_maps_lie_over_it(run):
    html = build_report(run).read_text()
    uri = attention(run)["shown"][0]["images"][0]
    assert html.count(uri) <= 2  # once here; the fake samples may show the same picture
    assert html.count('fill="url(#map0-0-0)"') == 1 + 2 * 7


def test_what_is_looked_at_most_is_clear_and_the_rest_dark():
    drawn = veiled(["map0-0-0"], [[0, 500, 1000, 250]], (2, 2), 1000, "label")
    assert paths(drawn, "veil") == [
        ("M10 0h10v10h-10z", "0.39"),
        ("M10 10h10v10h-10z", "0.58"),
        ("M0 0h10v10h-10z", "0.78"),
    ]


def test_equal_neighbours_are_one_piece():
    drawn = veiled([None], [[0] * 36], (6, 6), 1000, "label")
    assert paths(drawn, "veil") == [("".join(f"M0 {10 * r}h60v10h-60z" for r in range(6)), "0.78")]
    assert "url(" not in drawn


def test_words_look_at_words_in_rows_and_columns():
    drawn = word_matrix(["one", "two"], ["a", "b", "c"], [[0, 0, 1000], [0, 0, 0]], "label")
    ((piece, opacity),) = paths(drawn, "heat")
    left, top = re.search(r'<rect x="([\d.]+)" y="([\d.]+)"', str(drawn)).groups()
    assert piece.startswith(f"M{float(left) + 32:g} {float(top):g}h16v16")
    assert opacity == "1.00"


def test_the_matrix_of_heads_frames_the_best_of_every_row():
    drawn = str(head_matrix([[0.2, 0.9], [0.5, None]], "label"))
    assert drawn.count('class="best"') == 2
    assert re.findall(r'class="cell" text-anchor="middle">([^<]*)<', drawn) == ["0.20", "0.90", "0.50", "–"]


def test_an_older_run_has_no_section_and_no_link_to_it(run):
    (run / "attention.json").unlink()
    page = read(build_report(run))
    assert "attention" not in page.ids
    assert "Where both models look" not in page.text
    assert not [value for _, name, value in page.attributes if name == "href" and value == "#attention"]


def test_models_that_cannot_be_read_leave_a_remark_and_no_section(run):
    note = "Attention maps could not be read (no attention here)."
    (run / "attention.json").write_text(json.dumps({"version": 1, "notes": [note]}))
    page = read(build_report(run))
    assert note in page.text
    assert "attention" not in page.ids


def test_several_runs_have_a_part_each(run, other_run):
    page = read(build_report([run, other_run]))
    assert page.text.count("How alike the heads are") == 2
    assert len(page.ids) == len(set(page.ids))
    assert {"map0-0-0", "map1-0-0"} <= set(page.ids)


def test_a_picture_that_is_no_embedded_png_is_not_drawn(run):
    change(run / "attention.json", lambda data: data["shown"][0].update(images=["http://example.invalid/a.png"]))
    page = read(build_report(run))
    assert_safe(page)
    assert "map0-0-0" not in page.ids
    assert "map0-1-0" in page.ids


@pytest.mark.parametrize(
    "edit",
    [
        {"pair": 99},
        {"pair": -1},
        {"grid": [5, 6]},
        {"grid": [10**9, 10**9]},
        {"grid": None},
        {"rows": []},
        {"kind": "words"},
        {"kind": "bars"},
    ],
    ids=str,
)
def test_maps_that_do_not_fit_are_left_out(run, edit):
    change(run / "attention.json", lambda data: data["shown"][0]["maps"][0].update(edit))
    page = read(build_report(run))
    assert_safe(page)
    assert "Where both models look" in page.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -5, 1e300, 0])
def test_odd_numbers_leave_gaps(run, value):
    def edit(data):
        data["pairs"][0]["similarity"][0][0] = None if value != value else value
        for layer in data["distance"]:
            layer["teacher_heads"] = [value, None]
        for sample in data["shown"]:
            for maps in sample["maps"]:
                for row in maps["rows"]:
                    for side in ("teacher", "student"):
                        row[side] = (
                            [value for _ in row[side]]
                            if maps["kind"] == "bars"
                            else [[value for _ in inner] for inner in row[side]]
                        )

    change(run / "attention.json", edit)
    page = read(build_report(run))
    assert_safe(page)
    for tag, name, number in page.attributes:
        if tag in ("path", "rect", "text", "circle") and name in ("d", "x", "y", "width", "height", "cx", "opacity"):
            assert "nan" not in number
            assert "inf" not in number


def test_a_wrong_type_is_named_by_its_place(run):
    from potstill.errors import IntegrityError

    change(run / "attention.json", lambda data: data["pairs"][1].update(similarity="high"))
    with pytest.raises(IntegrityError, match=r"attention\.json.*pairs\.1\.similarity"):
        build_report(run)


def test_a_file_as_large_as_it_may_be_still_gives_a_page(tmp_path):
    run = write_fake_run(tmp_path / "large", "large")

    def edit(data):
        grown = data["shown"][0]
        grown["images"] = [picture(1, 192)]
        row = grown["maps"][0]["rows"][0]
        cells = [[(i * 7919) % 1000 for i in range(256)]]
        grown["maps"][0] = {
            "pair": 0,
            "kind": "picture",
            "grid": [16, 16],
            "rows": [{**row, "teacher": cells, "student": cells}] * 11,
        }
        data["shown"] = [grown] * 8

    change(run / "attention.json", edit)
    page = build_report(run)
    assert_safe(read(page))
    assert page.stat().st_size < 2_500_000
