import importlib.util
from pathlib import Path

import pytest

AUDIT = importlib.util.spec_from_file_location("audit", Path(__file__).parents[2] / ".ci" / "audit.py")
audit = importlib.util.module_from_spec(AUDIT)
AUDIT.loader.exec_module(audit)

CLEAN = {"name": "sound", "version": "1", "vulns": []}
FLAWED = {"name": "flawed", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([CLEAN, UNKNOWN], 0, "No known vulnerability; 1 of 2 pinned packages asked about."),
        ([UNKNOWN, UNKNOWN], 2, "NOT AUDITED, the database does not answer: 0 of 2 pinned packages asked about."),
        (
            [FLAWED, CLEAN],
            1,
            "flawed 2: CVE-1, mended in 2.1\n1 known vulnerabilities; 2 of 2 pinned packages asked about.",
        ),
    ],
)
def test_findings_none_and_no_answer_are_told_apart(packages, status, said):
    assert audit.verdict({"dependencies": packages}) == (status, said)
