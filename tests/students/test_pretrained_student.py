import pytest
import torch

from potstill.errors import InputError, IntegrityError
from potstill.students import build_depth_student, build_student


def test_a_saved_student_comes_back_ready_to_train(tiny, tmp_path):
    teacher, _ = tiny("coca")
    student, _ = build_depth_student(teacher, 2)
    student.half().save_pretrained(tmp_path)
    loaded, record = build_student("pretrained", teacher, {"model": str(tmp_path)})
    assert loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(a.float(), b) for a, b in zip(student.parameters(), loaded.parameters()))
    assert (record.teacher_class, record.builder) == ("CocaModel", "pretrained")
    assert record.parameters < record.teacher_parameters


def test_no_teacher_is_needed(tiny, tmp_path):
    tiny("vit")[0].save_pretrained(tmp_path)
    _, record = build_student("pretrained", None, {"model": str(tmp_path)})
    assert record.teacher_parameters is None


def test_messages_are_placed_in_the_recipe(tmp_path):
    with pytest.raises(InputError, match=r"student\.model: there is no such folder"):
        build_student("pretrained", None, {"model": str(tmp_path / "gone")})
    with pytest.raises(IntegrityError, match=r"config\.json: the file is missing"):
        build_student("pretrained", None, {"model": str(tmp_path)})
