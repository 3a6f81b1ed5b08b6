"""Nothing recorded goes without a comparison."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.reference.record import DELIBERATE, hold, recorded


def test_every_group_is_compared():
    tests = Path(__file__).parent.parent
    folders = tests / "reference", tests / "experiments"
    text = "\n".join(path.read_text() for f in folders for path in f.glob("test_*.py"))
    calls = re.findall(r'(?:hold\w*\(|recorded\(\)\[)\s*f?"([^"{]*)', text)
    for group in recorded():
        named = any(group.startswith(start) for start in calls)
        assert named or any(group.startswith(start) for start in DELIBERATE), group


def test_every_deliberate_change_is_recorded_and_has_a_reason():
    for start, reason in DELIBERATE.items():
        names = [f"{group}/{name}" for group, arrays in recorded().items() for name in arrays]
        assert any(name.startswith(start) for name in names), start
        assert len(reason.split()) > 3


CHANGES = {
    "larger": lambda a: a * 1.0001,
    "not a number": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, np.nan, a),
    "another shape": lambda a: a[None],
    "missing": lambda a: None,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("group", ["theory.maps.tanh", "networks.plain", "sweeps.cell_key"])
def test_a_change_is_noticed(group, change):
    arrays = recorded()[group]
    hold(group, dict(arrays))
    for name, array in arrays.items():
        with pytest.raises(AssertionError, match=re.escape(name)):
            hold(group, arrays | {name: CHANGES[change](array)})
