"""Layer groups of a model, from body to head, with their learning rates and their freezing.

`layer_groups` cuts a module tree into ordered groups, `discriminative` turns them into the
parameter groups of an optimizer, and `freeze_to` freezes the body. `lora_groups` makes those of
LoRA adapters, `muon_groups` those of Muon beside AdamW, and `state_groups` those of states in
8 bits. A `Timetable` is an unfreezing schedule,
and `set_norm_mode` sets the mode of normalisation layers in frozen groups.
"""

from lrfast.groups._discriminative import discriminative
from lrfast.groups._explicit import Groups, GroupSpec
from lrfast.groups._freezing import freeze, freeze_to, layer_count, unfreeze
from lrfast.groups._layer_group import LayerGroup, LayerGroups
from lrfast.groups._layers import layer_groups
from lrfast.groups._lora import lora_groups
from lrfast.groups._muon import muon_groups
from lrfast.groups._norms import NormPolicy, set_norm_mode
from lrfast.groups._rates import Rates, spread
from lrfast.groups._states import state_groups
from lrfast.groups._timetable import Timetable, gradual

__all__ = [
    "GroupSpec",
    "Groups",
    "LayerGroup",
    "LayerGroups",
    "NormPolicy",
    "Rates",
    "Timetable",
    "discriminative",
    "freeze",
    "freeze_to",
    "gradual",
    "layer_count",
    "layer_groups",
    "lora_groups",
    "muon_groups",
    "set_norm_mode",
    "spread",
    "state_groups",
    "unfreeze",
]
