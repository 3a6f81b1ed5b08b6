"""Every report of an experiment that a test makes must fit a terminal of 100 columns."""

import pytest

from experiments._kit import Report

COLUMNS = 100


@pytest.fixture(autouse=True)
def reports_fit_a_terminal(monkeypatch):
    """Check all sections and details, also those that a test does not print."""
    plain = Report.text

    def text(self, *, verbose=False):
        lines = "\n".join([*self.sections, *self.details, plain(self, verbose=True)]).splitlines()
        # The path of a file may be long.
        wide = [line for line in lines if len(line) > COLUMNS and "/" not in line]
        assert not wide
        return plain(self, verbose=verbose)

    monkeypatch.setattr(Report, "text", text)
