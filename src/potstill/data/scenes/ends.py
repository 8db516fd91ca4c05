"""The first and last token a model writes, where its configuration knows better than its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from potstill.errors import RecipeError


def read_ends(folder: Path, where: str = "tokenizer") -> tuple[int | None, int | None]:
    """Return the first and last token of what the model in a folder writes; None where its tokenizer's are right.

    A BLIP begins with a token that its tokenizer, a BERT's, has no name for.

    Raises:
        RecipeError: The configuration cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None, None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"its config.json cannot be read ({error})", where=where, got=str(folder)) from error
    if not isinstance(found, dict) or found.get("model_type") != "blip":
        return None, None
    from transformers import BlipConfig

    config = BlipConfig.from_pretrained(folder, local_files_only=True)
    return config.text_config.bos_token_id, config.text_config.sep_token_id
