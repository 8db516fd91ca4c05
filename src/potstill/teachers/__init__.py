"""Where the signal comes from that a student learns from."""

from potstill.teachers.live import LiveTeacher, fingerprint

__all__ = ["LiveTeacher", "fingerprint"]
