"""Building students: fewer layers, narrower layers, another configuration, or a model that exists."""

from potstill.students.base import STUDENTS, StudentRecord, build_student, finish_student
from potstill.students.config import build_config_student
from potstill.students.depth import build_depth_student
from potstill.students.new import build_new_student
from potstill.students.pretrained import build_pretrained_student
from potstill.students.shared_classifier import (
    build_shared_classifier_student,
    merge_classifier,
    name_classes,
    share_classifier,
)
from potstill.students.wide_head import build_wide_head_student, widen_head
from potstill.students.width import build_width_student

__all__ = [
    "STUDENTS",
    "StudentRecord",
    "build_config_student",
    "build_depth_student",
    "build_new_student",
    "build_pretrained_student",
    "build_shared_classifier_student",
    "build_student",
    "build_wide_head_student",
    "build_width_student",
    "finish_student",
    "merge_classifier",
    "name_classes",
    "share_classifier",
    "widen_head",
]
