import shutil

import pytest
from fake_run import write_fake_run


@pytest.fixture(scope="session")
def written_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_fake_run(folder / "optima", "scenes-optima")
    write_fake_run(folder / "kd", "scenes-kd", seed=1, has_policy=False, kept=0.92)
    return folder


@pytest.fixture
def run(written_runs, tmp_path):
    """A finished OPTIMA run, free to be changed."""
    return shutil.copytree(written_runs / "optima", tmp_path / "optima")


@pytest.fixture
def other_run(written_runs, tmp_path):
    """A finished run of plain distillation with the same teacher, free to be changed."""
    return shutil.copytree(written_runs / "kd", tmp_path / "kd")
