"""Bringing student and teacher to one form: layer maps, projectors, masks, vocabularies."""
