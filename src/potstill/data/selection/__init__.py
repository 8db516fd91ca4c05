"""Which samples of a pool are trained on."""

from potstill.data.selection.web_instances import Selection, select_web_instances

__all__ = ["Selection", "select_web_instances"]
