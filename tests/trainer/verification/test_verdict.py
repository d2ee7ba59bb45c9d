"""The verdict in words."""

from __future__ import annotations

from arctic_hydra.trainer.verification.verdict import Verdict, problem_of, verdict_lines


def test_a_verdict_says_what_is_equal_what_differs_and_what_was_not_checked() -> None:
    good = Verdict(equal=["logits equal to 1e-6", "2 stop tokens"], seconds=0.1234).as_dict()
    assert (good["verified"], good["seconds"]) == (True, 0.12)
    assert [*verdict_lines("export", good)] == ["export verified: logits equal to 1e-6, 2 stop tokens"]
    wrong = Verdict(equal=["template"], differs=["its head is not tied"], unchecked=["logits (too large)"]).as_dict()
    assert not wrong["verified"]
    lines = ["export is wrong: its head is not tied", "export not checked: logits (too large)"]
    assert [*verdict_lines("export", wrong)] == lines
    assert problem_of({"a": good, "b": wrong}) == "an export differs from the trained model: b: its head is not tied"
    assert problem_of({"a": good}) == "" and not Verdict().verified
