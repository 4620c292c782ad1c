"""A verdict as JUnit XML, which GitHub, GitLab and Jenkins read: a test case for every finding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from gradbench.vocabulary.exit import Exit

if TYPE_CHECKING:
    from gradbench.tables.findings import Finding
    from gradbench.tables.verdict import Verdict

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # no XML 1.0 may hold these
_ENVIRONMENT = ("commit", "dirty", "device", "processor", "torch")


def verdict_junit(verdict: Verdict) -> str:
    """The verdict as one test suite: a failure is a claim that does not hold, an error is a store that is damaged.

    It holds no time, so that the same run gives the same bytes. The first case is the verdict itself: it fails wherever
    the exit code is not 0, also where every check passes and cells are missing.
    """
    findings = verdict.reported
    errors = sum(_kind(finding, verdict) == "error" for finding in findings)
    failures = sum(not finding.passed for finding in findings) - errors
    counts = {"tests": str(len(findings)), "failures": str(failures), "errors": str(errors), "skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": "gradbench", **counts, "time": "0"})
    name = ".".join(filter(None, ("gradbench", _legal(verdict.suite))))
    # some readers need a time, and none is known for a claim
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts, "time": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(verdict):
        ElementTree.SubElement(properties, "property", {"name": key, "value": _legal(value)})
    named = Counter[tuple[str, str]]()
    for finding in findings:
        named[finding.kind, finding.name] += 1
        nth = named[finding.kind, finding.name]  # GitLab reads one case of a name
        title = _legal(finding.name) + (f" ({nth})" if nth > 1 else "")
        case = {"classname": f"{name}.{finding.kind}", "name": title, "time": "0"}
        _tell(ElementTree.SubElement(suite, "testcase", case), finding, verdict)
    ElementTree.indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _tell(case: ElementTree.Element, finding: Finding, verdict: Verdict) -> None:
    told = _legal(finding.detail)
    if finding.passed:
        ElementTree.SubElement(case, "system-out").text = told
        return
    kind = {"fail": "fail", "none": "no verdict"}[finding.result]
    failure = ElementTree.SubElement(case, _kind(finding, verdict), {"message": told, "type": kind})
    numbers = [f"{finding.cells} cells", f"{finding.left_out} left out" if finding.left_out else ""]
    failure.text = "\n".join([told, ", ".join(filter(None, numbers)), f"cell {finding.cell}" if finding.cell else ""])


def _kind(finding: Finding, verdict: Verdict) -> str:
    """How JUnit calls a finding."""
    if finding.passed:
        return "pass"
    damaged = finding.kind == "store" or (finding.kind == "verdict" and verdict.code is Exit.STORE)
    return "error" if damaged else "failure"


def _properties(verdict: Verdict) -> Iterator[tuple[str, str]]:
    yield from (("run", verdict.run), ("suite", verdict.suite), ("exit code", str(verdict.code.value)))
    env = {} if verdict.snapshot is None else verdict.snapshot.env
    yield from ((key, str(env[key])) for key in _ENVIRONMENT if env.get(key) is not None)
    yield from (("cells planned", str(verdict.planned)), ("cells present", str(verdict.present)))
    yield from ((f"cells {status}", str(n)) for status, n in sorted(verdict.statuses.items()))


def _legal(text: str) -> str:
    """A text in which characters that XML cannot hold are written as escapes."""
    return _ILLEGAL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
