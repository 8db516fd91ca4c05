import doctest

import pytest

import potstill.data.label_texts
from potstill.data.label_texts import enrich_labels
from potstill.errors import InputError


def test_the_doc_examples_run():
    assert doctest.testmod(potstill.data.label_texts).failed == 0


def test_names_and_descriptions_fill_the_template_in_order():
    texts = enrich_labels(["cat", "dog"], ["a soft one", "a loud one"])
    assert texts == ["a photo of cat . a soft one", "a photo of dog . a loud one"]
    assert enrich_labels(["cat"], ["soft"], "{description}: {name}!") == ["soft: cat!"]


def test_names_alone_leave_out_the_description_and_what_leads_to_it():
    assert enrich_labels(["cat"], None) == ["a photo of cat"]
    assert enrich_labels(["cat"], None, "{name}, {description}, drawn") == ["cat, drawn"]
    assert enrich_labels(["cat"], None, "a {name}") == ["a cat"]
    assert enrich_labels([], None) == []


def test_braces_in_names_stay_as_they_are():
    assert enrich_labels(["{description}"], ["{name}"]) == ["a photo of {description} . {name}"]


def test_descriptions_that_do_not_pair_up_are_refused():
    with pytest.raises(InputError, match="2, one for each name; got 1"):
        enrich_labels(["cat", "dog"], ["soft"])
    with pytest.raises(InputError, match="no list of texts"):
        enrich_labels("cat", None)
    with pytest.raises(InputError, match="no list of texts"):
        enrich_labels(["cat"], [None])


@pytest.mark.parametrize(
    ("descriptions", "template"),
    [(["soft"], "a photo of {name}"), (None, "a photo"), (["soft"], "{name} {description} {color}")],
)
def test_templates_that_lack_a_place_or_have_another_are_refused(descriptions, template):
    with pytest.raises(InputError, match="template does not fit"):
        enrich_labels(["cat"], descriptions, template)
