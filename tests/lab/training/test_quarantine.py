"""Bad samples are written down once, counted over all processes, forgotten by a resume, and end the run if too many."""

import json
from pathlib import Path
from typing import Any

import pytest

from lab.data.source import Fault
from lab.training.quarantine import Quarantine
from lab.world import ALONE


def fault(slot: int, name: str = "", reason: str = "broken image") -> Fault:
    return Fault(slot, name or f"{slot}.png", reason, "", "")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_sample_is_written_once_in_the_order_of_the_slots(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    found = Quarantine(path, 100, 0.5)
    found.add([fault(3), fault(1), fault(2, "1.png")])
    found.settle(ALONE)
    found.add([fault(9, "3.png"), fault(7)])
    found.settle(ALONE)
    assert [(line["slot"], line["id"]) for line in lines(path)] == [(1, "1.png"), (3, "3.png"), (7, "7.png")]
    assert len(found) == 3


def test_nothing_is_written_where_nothing_is_bad(tmp_path: Path) -> None:
    found = Quarantine(tmp_path / "quarantine.jsonl", 100, 0.5)
    found.settle(ALONE)
    assert list(tmp_path.iterdir()) == []


def test_a_resume_keeps_what_came_before_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    found = Quarantine(path, 100, 0.5)
    found.add(fault(slot) for slot in (1, 5, 8, 9))
    found.settle(ALONE)
    with path.open("a") as file:
        file.write('{"slot": 10, "id"')  # cut short by a kill
    helper, first = Quarantine(path, 100, 0.5), Quarantine(path, 100, 0.5)
    before = path.read_bytes()
    helper.rewind(8, writes=False)
    assert (len(helper), path.read_bytes()) == (2, before)
    first.rewind(8, writes=True)
    first.add([fault(8), fault(20, "5.png")])
    first.settle(ALONE)
    assert [line["slot"] for line in lines(path)] == [1, 5, 8]


@pytest.mark.parametrize(
    ("num_bad", "seen", "num", "is_too_many"),
    [
        (4, 10, 1000, False),  # a few are always allowed
        (5, 10, 1000, True),
        (10, 1000, 1000, False),  # exactly 1 %
        (11, 1000, 1000, True),
        (11, 5000, 1000, True),  # in five epochs there are no more samples than in one
        (11, 5000, None, False),
    ],
)
def test_more_than_the_share_is_too_many(
    tmp_path: Path, num_bad: int, seen: int, num: int | None, is_too_many: bool
) -> None:
    found = Quarantine(tmp_path / "quarantine.jsonl", num, 0.01)
    found.add(fault(slot) for slot in range(num_bad))
    found.settle(ALONE)
    assert bool(found.excess(seen)) == is_too_many


def test_the_reasons_are_counted_in_a_table(tmp_path: Path) -> None:
    found = Quarantine(tmp_path / "quarantine.jsonl", 100, 0.01)
    found.add([fault(0, reason="empty file"), *(fault(slot) for slot in range(1, 7))])
    found.settle(ALONE)
    first, *table = found.excess(50).splitlines()
    assert "7 of 50 samples are bad, more than data.max_bad=0.01 allows" in first
    assert [line.split(maxsplit=1) for line in table] == [["6", "broken image"], ["1", "empty file"]]
