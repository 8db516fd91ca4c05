"""A classifier whose output layer has several units for each class, and that answers in classes all the same."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from potstill.errors import InputError
from potstill.losses import lelp_class_logits


class PseudoClassConfig(PreTrainedConfig):
    """The configuration of a classifier with C·S labels, and S.

    Args:
        inner: Fields of the classifier's own configuration, with ``architectures`` and ``model_type``.
        subclasses: S, units for each class.

    Raises:
        InputError: The units cannot be shared out evenly, or the classifier's class is unknown.
    """

    model_type = "potstill_pseudo_classes"

    inner: dict[str, Any] | None = None
    subclasses: int = 1

    def inner_config(self) -> PreTrainedConfig:
        """Return the classifier's own configuration."""
        fields = dict(self.inner or {})
        kind = fields.get("model_type")
        if kind not in CONFIG_MAPPING and kind not in _own_types():
            raise InputError("no classifier of a known type", where="PseudoClassConfig.inner", got=kind)
        home = _home(kind)
        config_class = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else inner_class(fields, home).config_class
        return config_class.from_dict(fields)

    @property
    def num_classes(self) -> int:
        """C: how many classes the model tells apart."""
        units = self.inner_config().num_labels
        if self.subclasses < 1 or units % self.subclasses:
            raise InputError(
                "units cannot be shared out evenly", where="PseudoClassConfig", got=f"{units} for S = {self.subclasses}"
            )
        return units // self.subclasses


@dataclass
class PseudoClassOutput(ModelOutput):
    """What a ``PseudoClassModel`` returns.

    Attributes:
        logits: One for each class, ``[B, C]``.
        wide_logits: One for each pseudo-class, ``[B, C·S]``; pseudo-class s of class c stands at c·S + s.
    """

    logits: Tensor | None = None
    wide_logits: Tensor | None = None


class PseudoClassModel(PreTrainedModel):
    """Wraps a classifier with C·S units: ``logits`` are the classes', ``wide_logits`` what its output layer gives.

    The logit of a class is the log-sum-exp over its units, so its probability is the sum of theirs. The classifier
    itself is ``inner``; paths of taps begin with it.
    """

    config_class = PseudoClassConfig
    config: PseudoClassConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PseudoClassConfig):
        super().__init__(config)
        inner = config.inner_config()
        self.num_classes = config.num_classes
        self.inner = inner_class(config.inner, _home(inner.model_type))(inner)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Leave the start of every weight to the classifier's own class."""
        self.inner._init_weights(module)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **more: Any,
    ) -> PseudoClassOutput:
        """Classify pictures or texts; inputs that are None are not handed on."""
        given = {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            **more,
        }
        wide = self.inner(**{name: value for name, value in given.items() if value is not None})["logits"]
        return PseudoClassOutput(logits=lelp_class_logits(wide, self.num_classes), wide_logits=wide)


def inner_class(fields: dict[str, Any], home: Any) -> type[PreTrainedModel]:
    """Return the class that a classifier's configuration names."""
    name = (fields.get("architectures") or [None])[0]
    found = getattr(home, str(name), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise InputError("no known class of models", where="PseudoClassConfig.inner.architectures", got=name)
    return found


def _home(model_type: str) -> Any:
    own = _own_types()
    return importlib.import_module(own[model_type]) if model_type in own else transformers


def _own_types() -> dict[str, str]:
    from potstill.models.load import OWN_TYPES

    return OWN_TYPES
