"""The sweeps of 0.1 drew from keys into which the CRC-32 of a label was folded."""

import pytest

from jaxgrad.sweeps import _grid


@pytest.fixture(autouse=True)
def keys_of_0_1(monkeypatch):
    monkeypatch.setattr(_grid, "CELL_IDS", "crc32")
