import json

import pytest

from potstill.errors import IntegrityError
from potstill.report.history import read_history


def step(number, value=1.0):
    return {
        "event": "step",
        "step": number,
        "arm": None,
        "loss": value,
        "terms": {"vqa": {"value": value, "weight": 1.0}},
    }


def write(path, events, tail=b""):
    path.write_bytes(b"".join(json.dumps(event).encode() + b"\n" for event in events) + tail)
    return path


def test_history_is_read_in_order(tmp_path):
    history = read_history(write(tmp_path / "h", [step(20, 3.0), step(40, 2.0)]))
    assert [(s.step, s.loss, s.terms["vqa"]) for s in history.steps] == [(20, 3.0, (3.0, 1.0)), (40, 2.0, (2.0, 1.0))]
    assert history.last_step == 40
    assert not history.is_torn


@pytest.mark.parametrize("tail", [b'{"event":"st', b'{"event":"step","step":60}'[:-1], b"\xe2\x82", b"\x00\x00"])
def test_a_torn_tail_is_dropped(tmp_path, tail):
    history = read_history(write(tmp_path / "h", [step(20), step(40)], tail))
    assert history.last_step == 40
    assert history.is_torn


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = write(tmp_path / "history.jsonl", [step(20)], b'{"event":\n' + json.dumps(step(40)).encode() + b"\n")
    with pytest.raises(IntegrityError, match=r"history\.jsonl, line 2.*Remove line 2"):
        read_history(path)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "step"},
        {"event": "step", "step": "20", "terms": {}},
        {"event": "step", "step": 20, "terms": {"vqa": 1.0}},
        {"event": "step", "step": 20, "terms": {"vqa": {"value": "low"}}},
        {"event": "round", "step": 20, "arm": "a", "reward": True},
        {"event": "round", "step": 20, "arm": "a", "posterior": {"a": {}}},
        [1],
        3,
    ],
    ids=repr,
)
def test_a_line_that_is_no_event_is_named(tmp_path, event):
    with pytest.raises(IntegrityError, match="line 1"):
        read_history(write(tmp_path / "h", [event, step(40)]))


def test_steps_done_again_after_a_resume_replace_the_first_ones(tmp_path):
    first = [step(20, 5.0), step(40, 4.0), step(60, 9.0), step(80, 9.0)]
    history = read_history(write(tmp_path / "h", [*first, step(60, 3.0), step(80, 2.0)]))
    assert [(s.step, s.loss) for s in history.steps] == [(20, 5.0), (40, 4.0), (60, 3.0), (80, 2.0)]
    assert history.resumed_at == [60]


def test_unknown_events_and_blank_lines_are_skipped(tmp_path):
    path = write(tmp_path / "h", [{"event": "checkpoint", "step": 10}, step(20)], b"\n\n")
    history = read_history(path)
    assert len(history.steps) == 1
    assert not history.is_torn
