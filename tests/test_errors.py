"""Error texts: all faults in one, the nearest name first, never a page of names."""

from __future__ import annotations

from aim_tune.errors import Fault, StudyError, unknown


def test_a_study_error_tells_every_fault_with_its_place() -> None:
    faults = [
        Fault(where="s.yaml:3", key="recipe.steps", text="is 0; allowed: 1 or more"),
        Fault(where="s.yaml:9", key="", text="duplicate key"),
    ]
    assert str(StudyError(faults)) == (
        "2 faults in the study:\n"
        "  s.yaml:3: recipe.steps: is 0; allowed: 1 or more\n"
        "  s.yaml:9: duplicate key"
    )


def test_an_unknown_name_lists_the_known_ones_nearest_first() -> None:
    assert unknown("backbone", "resnet9", ["resnet8", "mlp"]) == (
        "unknown backbone 'resnet9'; did you mean 'resnet8'? known: mlp, resnet8"
    )


def test_of_many_names_only_the_nearest_are_listed() -> None:
    text = unknown("backbone", "net7", [f"net{n}" for n in range(100)])
    assert "did you mean 'net7'" in text
    assert "the nearest of 100 known" in text
    assert text.count(",") == 7
