"""Modules whose names have changed: an old name raises an error that gives the new one."""

import importlib
from pathlib import Path

import pytest

from minigrad.renamed import since_0_2

CHANGELOG = (Path(__file__).parents[1] / ".github" / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(("old", "new"), since_0_2().items())
def test_an_old_name_of_a_module_gives_the_new_one(old, new):
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(old)
    assert str(error.value) == (
        f"there is no module `{old}` since minigrad 0.2; its contents are in {new}"
    )
    for module in new.split(" and "):
        importlib.import_module(module)


@pytest.mark.parametrize("old", since_0_2())
def test_the_changelog_has_a_row_for_each_old_name(old):
    assert f"\n| `{old}`" in CHANGELOG


def test_a_module_that_never_was_is_not_found_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'minigrad\.tensors'"):
        importlib.import_module("minigrad.tensors")


def test_a_part_of_an_old_package_gives_the_new_name_of_the_package():
    with pytest.raises(ModuleNotFoundError, match=r"lora\.files.*lora\.peft"):
        importlib.import_module("lora.files.folder")
