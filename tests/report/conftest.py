import pytest
from fake_run import write_fake_run


@pytest.fixture
def run(tmp_path):
    """A finished OPTIMA run."""
    return write_fake_run(tmp_path / "optima", "scenes-optima")


@pytest.fixture
def other_run(tmp_path):
    """A finished run of plain distillation with the same teacher."""
    return write_fake_run(tmp_path / "kd", "scenes-kd", seed=1, has_policy=False, kept=0.92)
