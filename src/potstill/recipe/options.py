"""Check the options a recipe gives to something registered against that thing's own signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from potstill.errors import PotstillError, RecipeError, suggest


def call_with_options(
    target: Callable[..., Any],
    options: Mapping[str, Any],
    where: str,
    *args: Any,
    given: Iterable[str] = (),
    **fixed: Any,
) -> Any:
    """Call ``target(*args, **fixed, **options)``; unknown, missing or refused options become placed errors.

    Args:
        target: Class or function.
        options: What the recipe says.
        where: Recipe path of the section.
        args: Positional arguments the caller supplies.
        given: Names of parameters filled by ``args``, not open to the recipe.
        fixed: Keyword arguments the caller supplies, not open to the recipe.
    """
    parameters = inspect.signature(target).parameters
    named = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n != "self"}
    open_to_recipe = named - set(fixed) - set(given)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key not in open_to_recipe and not takes_any:
            raise RecipeError("there is no such option", where=f"{where}.{key}", hint=suggest(key, open_to_recipe))
    missing = [n for n in open_to_recipe if parameters[n].default is inspect.Parameter.empty and n not in options]
    if missing:
        raise RecipeError("is missing", where=f"{where}.{missing[0]}")
    try:
        return target(*args, **fixed, **options)
    except PotstillError as error:
        raise error.at(where) from None
    except (TypeError, ValueError) as error:
        raise RecipeError(f"the options were refused ({error})", where=where, got=dict(options)) from error
