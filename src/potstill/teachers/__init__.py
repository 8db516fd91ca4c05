"""Where the signal comes from that a student learns from."""

from potstill.teachers.live import LiveTeacher, fingerprint, live_teachers

__all__ = ["LiveTeacher", "fingerprint", "live_teachers"]
