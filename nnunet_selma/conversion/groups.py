"""Groups of cases that must share a fold, as a user gives them: found in the names by a pattern, or listed in a table."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_selma.errors import SelmaError


def given_groups(group: str, cases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Case to its group.

    Args:
        group: a CSV file with the columns case and group, or a regular expression: its first parenthesis, or all of it, is the group.
        cases: case to the names by which the user may know it, its name in nnU-Net first.

    Raises:
        SelmaError: the table or the expression cannot be read, or has no group for a case.
    """
    if Path(group).suffix.lower() == ".csv":
        return _groups_of_table(Path(group), cases)
    return _groups_of_pattern(group, list(cases))


def _groups_of_pattern(pattern: str, cases: Sequence[str]) -> dict[str, str]:
    """Case to the part of its name that the pattern finds."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SelmaError(f"--group {pattern}: is no regular expression ({error})") from error
    matches = {case: expression.search(case) for case in cases}
    unmatched = [case for case, match in matches.items() if not (match and match[match.re.groups and 1])]
    if unmatched:
        raise SelmaError(
            f"--group {pattern}: finds no group in {unmatched[0]} ({len(unmatched)} of {len(cases)} cases); give a table of all cases"
        )
    return {case: match[match.re.groups and 1] for case, match in matches.items() if match}


def _groups_of_table(path: Path, cases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Case to its group in a CSV file."""
    if not path.is_file():
        raise SelmaError(f"{path}: there is no such file; give a CSV file with the columns case and group")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except UnicodeDecodeError as error:
        raise SelmaError(f"{path}: is not written in UTF-8; save it as CSV UTF-8") from error
    if not rows or not {"case", "group"} <= set(rows[0]):
        raise SelmaError(f"{path}: has no columns case and group; write them into its first line, separated by a comma")
    groups: dict[str, str] = {}
    for row in rows:
        case, group = (row["case"] or "").strip(), (row["group"] or "").strip()
        if group and groups.setdefault(case, group) != group:
            raise SelmaError(f"{path}: puts {case} into the groups {groups[case]} and {group}; keep one of them")
    known = {case: next((groups[name] for name in names if name in groups), None) for case, names in cases.items()}
    missing = [case for case, its_group in known.items() if its_group is None]
    if missing:
        raise SelmaError(f"{path}: has no group for {missing[0]} ({len(missing)} of {len(cases)} cases)")
    return {case: its_group for case, its_group in known.items() if its_group is not None}
