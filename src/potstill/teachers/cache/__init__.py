"""What a teacher showed, kept on disk: built once, read by many runs (``docs/cache.md``)."""

from potstill.teachers.cache.batches import CachedCollator, NumberedDataset
from potstill.teachers.cache.cached import CachedTeacher
from potstill.teachers.cache.fields import Field
from potstill.teachers.cache.folder import CacheReader, CacheWriter

__all__ = ["CacheReader", "CacheWriter", "CachedCollator", "CachedTeacher", "Field", "NumberedDataset"]
