"""The names of a run's checkpoints."""

from pathlib import Path

import pytest

from vox.runs.layout import (
    Kind,
    checkpoint_name,
    checkpoints_of,
    kind_of,
    list_checkpoints,
    list_validated,
    name_copy,
    name_original,
)

KINDS: tuple[Kind, ...] = ("plain", "validated", "average")


def test_names_are_those_on_disk_already() -> None:
    assert [checkpoint_name(12, kind) for kind in KINDS] == [
        "update-00000012",
        "update-00000012-validated",
        "update-00000012-validated-average",
    ]


def test_names_sort_in_the_order_of_writing_and_tell_their_kind() -> None:
    names = [checkpoint_name(update, kind) for update in (9, 10, 99_999_999) for kind in KINDS]
    assert names == sorted(names)
    assert [kind_of(name) for name in names] == 3 * list(KINDS)


@pytest.mark.parametrize("name", [".update-7.partial", "update-7.1", "update-", "update-7-best", "last"])
def test_other_folders_are_no_checkpoints(name: str, tmp_path: Path) -> None:
    (checkpoints_of(tmp_path) / name).mkdir(parents=True)
    assert kind_of(name) is None and list_checkpoints(tmp_path) == []


def test_the_mean_of_checkpoints_is_not_averaged_again(tmp_path: Path) -> None:
    names = [checkpoint_name(3, "validated"), checkpoint_name(6), checkpoint_name(6, "average")]
    for name in names:
        (checkpoints_of(tmp_path) / name).mkdir(parents=True)
    assert list_checkpoints(tmp_path) == names
    assert [path.name for path in list_validated(tmp_path)] == names[:1]


def test_a_copy_of_a_name_that_is_taken_tells_the_first_name() -> None:
    copies = [name_copy("update-7-validated", life) for life in range(3)]
    assert copies == ["update-7-validated", "update-7-validated.1", "update-7-validated.2"]
    assert {name_original(copy) for copy in copies} == {"update-7-validated"}
