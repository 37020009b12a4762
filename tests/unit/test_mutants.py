"""The mutants that ``make mutants`` tries."""

from __future__ import annotations

import pytest

from scripts.mutants import ROOT, Mutant, all_mutants


@pytest.mark.parametrize("mutant", [pytest.param(each, id=name) for name, each in all_mutants().items()])
def test_its_text_stands_in_the_source_once(mutant: Mutant) -> None:
    """One that is stale would be found out only in a run that takes long."""
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
