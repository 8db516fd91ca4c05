"""Pictures with one class each: what the sources ``emoji`` and ``digits`` share."""

from potstill.data.pictures.collate import PictureCollator
from potstill.data.pictures.dataset import Drawn, PictureDataset
from potstill.data.pictures.options import AUGMENTS, PictureOptions
from potstill.data.pictures.render import ODD_STYLES
from potstill.data.pictures.source import picture_source

__all__ = ["AUGMENTS", "ODD_STYLES", "Drawn", "PictureCollator", "PictureDataset", "PictureOptions", "picture_source"]
