"""Fixtures of the report's tests."""

import pytest
from known_labels import Known, known

from hf_clidmu.report import LabelReport


@pytest.fixture(scope="session")
def noisy() -> Known:
    """40 % of the labels wrong, at random."""
    return known(0.4)


@pytest.fixture(scope="session")
def noisy_report(noisy: Known) -> LabelReport:
    return noisy.report(ledger=noisy.ledger())


@pytest.fixture(scope="session")
def hard() -> Known:
    """No label wrong, but classes that overlap: the best model there is errs in one sample of five."""
    return known(0.0, apart=1.6)
