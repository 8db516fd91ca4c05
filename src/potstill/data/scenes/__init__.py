"""Emoji scenes: the embedded picture-and-text data. Real artwork, real names, made on the fly from a seed."""

from potstill.data.scenes.collate import SceneCollator
from potstill.data.scenes.dataset import TASKS, SceneDataset
from potstill.data.scenes.pack import load_pack
from potstill.data.scenes.sheet import contact_sheet
from potstill.data.scenes.splits import SPLITS
from potstill.data.scenes.text_to_text import TextToTextCollator
from potstill.data.scenes.tokenizer import build_tokenizer
from potstill.data.scenes.wording import objects_in_caption

__all__ = [
    "SPLITS",
    "TASKS",
    "SceneCollator",
    "SceneDataset",
    "TextToTextCollator",
    "build_tokenizer",
    "contact_sheet",
    "load_pack",
    "objects_in_caption",
]
