"""The recipe page says what the schema and the signatures say."""

import subprocess
import sys

from documents import ROOT


def test_the_recipe_reference_is_up_to_date():
    """In a process of its own, where no other test has registered anything."""
    command = [sys.executable, str(ROOT / "tools" / "make_recipe_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_field_of_the_schema_is_on_the_page():
    from potstill.recipe.schema import Recipe

    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    schema = Recipe.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for field in section["properties"]:
            assert f"\n| `{field}` |" in page, field
