"""Nothing recorded goes without a comparison."""

import re
from pathlib import Path

from tests.reference.record import DELIBERATE, recorded


def test_every_group_is_compared():
    folder = Path(__file__).parent
    text = "\n".join(path.read_text() for path in folder.glob("test_*.py"))
    calls = re.findall(r'(?:hold\(|recorded\(\)\[)\s*f?"([^"{]*)', text)
    for group in recorded():
        named = any(group.startswith(start) for start in calls)
        assert named or any(group.startswith(start) for start in DELIBERATE), group


def test_every_deliberate_change_is_recorded_and_has_a_reason():
    for start, reason in DELIBERATE.items():
        names = [f"{group}/{name}" for group, arrays in recorded().items() for name in arrays]
        assert any(name.startswith(start) for name in names), start
        assert len(reason.split()) > 3
