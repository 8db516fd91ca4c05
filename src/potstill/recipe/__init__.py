"""Recipes: the schema of a run, reading it from YAML, overrides."""

from potstill.recipe.load import dump_recipe, find_recipe, load_recipe, packaged_recipes, validate
from potstill.recipe.schema import Recipe

__all__ = ["Recipe", "dump_recipe", "find_recipe", "load_recipe", "packaged_recipes", "validate"]
