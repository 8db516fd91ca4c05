"""One self-contained HTML page about one or several distillation runs."""

from potstill.report.build import build_report

__all__ = ["build_report"]
