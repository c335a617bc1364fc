"""Initial weights that are no normal ones; tests/model/test_init.py has every method and its formula."""

from __future__ import annotations

from tests.model.options.option import Option
from tests.model.options.reference import ClosedForm

OPTIONS = {
    "orthogonal": Option(
        keys={"init_method": "orthogonal", "output_layer_init_method": "scaled_orthogonal"}, reference=ClosedForm.logits
    ),
    "xavier": Option(
        keys={"init_method": "xavier_uniform", "output_layer_init_method": "xavier_normal"}, reference=ClosedForm.logits
    ),
}
