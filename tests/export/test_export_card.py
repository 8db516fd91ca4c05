import yaml

from potstill.export import model_card


def _front(text):
    return yaml.safe_load(text.split("---")[1])


def test_a_card_holds_the_facts_and_a_table_of_scores():
    text = model_card(
        {
            "name": "Small scenes",
            "license": "apache-2.0",
            "tags": ["coca"],
            "trained_with": "potstill distill",
            "scores": {"vqa": {"accuracy": 0.91, "kinds": {"what": 1}}, "caption": 0.5},
        }
    )
    assert _front(text) == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["potstill", "distillation", "coca"],
    }
    assert "# Small scenes" in text
    assert "- Trained with: potstill distill" in text
    assert "| vqa | accuracy | 0.91 |" in text
    assert "| caption | score | 0.5 |" in text
    assert "kinds" not in text


def test_an_empty_card_is_still_a_card():
    assert _front(model_card({}))["library_name"] == "transformers"


def test_facts_cannot_break_out_of_their_place():
    text = model_card({"name": "a\n# b", "license": "x: [", "note": "<script>\n- y", "scores": {"a|b": 1}})
    assert "# a # b" in text
    assert "\n# b" not in text
    assert "<script>" not in text
    assert "\n- y" not in text
    assert _front(text)["license"] == "x: ["
    assert "| a\\|b | score | 1 |" in text
