"""Write a trained student to disk, verified by loading it."""

from potstill.export.card import model_card
from potstill.export.student import export_student, verify_export

__all__ = ["export_student", "model_card", "verify_export"]
