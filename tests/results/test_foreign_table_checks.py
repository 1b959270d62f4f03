"""Published tables that contradict themselves or each other raise warnings; honest ones do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.results.foreign_table import PublishedTable, read_table
from bench.results.foreign_table_checks import TableCheck, TableState, check_tables

TABLES = Path(__file__).parents[1] / "fixtures" / "published_tables"


def checked(*names: str) -> dict[str, TableCheck]:
    """The checks of fixture tables, by name."""
    return {r.check: r for r in check_tables([read_table(TABLES / name) for name in names])}


def warnings(found: dict[str, TableCheck]) -> dict[str, int]:
    """Check -> number of inconsistencies."""
    raised = {name: r for name, r in found.items() if r.state is TableState.WARNING}
    return {name: len(result.sentences) for name, result in raised.items()}


@pytest.mark.row("RP01")
def test_table_a_raises_warnings() -> None:
    """PGD takes 72 points at eps .001, where FGSM takes 15; 1212 of 8805 are 13.76 %, printed as
    13.77; 678 of 8805 are 7.70 %, printed as 7.71."""
    found = checked("table_a.toml")
    assert warnings(found) == {
        "tiny-radius-has-a-large-effect": 1, "count-and-percentage-differ": 2,
    }  # fmt: skip
    (tiny,) = found["tiny-radius-has-a-large-effect"].sentences
    assert "PGD on none at Linf 0.001 takes 72.2 points" in tiny
    first, second = found["count-and-percentage-differ"].sentences
    assert "printed as 13.77 %, and 1212 of 8805 are 13.7649 %" in first
    assert "printed as 7.71 %, and 678 of 8805 are 7.7002 %" in second
    assert found["one-step-leaves-less"].state is TableState.PASSED


@pytest.mark.row("RP02")
def test_table_b_raises_warnings() -> None:
    """PGD leaves more than FGSM at .01, for all three defenses."""
    found = checked("table_b.toml")
    assert warnings(found) == {"one-step-leaves-less": 3, "denominator-is-not-stated": 1}
    assert (
        "leaves 47.95 %, PGD on none at Linf 0.01 leaves 57.99 %"
        in (found["one-step-leaves-less"].sentences[0])
    )


@pytest.mark.row("RP01", "RP02")
def test_the_two_tables_contradict_each_other() -> None:
    """FGSM at .01 does not: 54.05 % of the correct ones are 47.6 % of all, beside 47.95 %."""
    sentences = checked("table_a.toml", "table_b.toml")["tables-contradict"].sentences
    assert [s.split(" leaves ")[0] for s in sentences] == [
        "FGSM on none at Linf 0.05", "PGD on none at Linf 0.01", "PGD on none at Linf 0.05",
    ]  # fmt: skip


@pytest.mark.row("RP08")
def test_the_counts_of_the_nine_defenses_are_those_of_their_rows() -> None:
    """7 of 9 rely on obfuscated gradients, 6 of these have at most 10 %, the last one 55 %."""
    found = checked("nine_defenses.toml")
    assert found["count-in-the-text-differs"].state is TableState.PASSED
    assert warnings(found) == {"denominator-is-not-stated": 1}


@pytest.mark.row("RP08")
@pytest.mark.parametrize(
    ("old", "new"), [("k = 6", "k = 7"), ("accuracy = 9", "accuracy = 19"), ("k = 9", "k = 8")]
)
def test_a_count_that_the_rows_do_not_have_raises_a_warning(
    tmp_path: Path, old: str, new: str
) -> None:
    text = (TABLES / "nine_defenses.toml").read_text()
    assert old in text
    (tmp_path / "t.toml").write_text(text.replace(old, new, 1))
    (result,) = [
        r
        for r in check_tables([read_table(tmp_path / "t.toml")])
        if r.check == "count-in-the-text-differs"
    ]
    assert result.state is TableState.WARNING
    assert "the text says that" in result.sentences[0]


def test_an_honest_table_raises_none() -> None:
    found = checked("honest_sweep.csv")
    assert warnings(found) == {}
    assert sum(result.state is TableState.PASSED for result in found.values()) >= 6


# Rows of two inconsistent and one consistent table for each check: attack, eps, accuracy of 100 %.
CASES: list[tuple[str, str, bool]] = [
    ("one-step-leaves-less", "FGSM,0.1,30;PGD,0.1,40", True),
    ("one-step-leaves-less", "step-ll,0.1,30;BIM,0.1,40", True),
    ("one-step-leaves-less", "FGSM,0.1,30;PGD-20,0.1,31", False),
    ("one-step-leaves-less", "FGSM,0.1,40;PGD-20,0.1,30", False),
    ("accuracy-rises-with-radius", "PGD,0.1,30;PGD,0.2,40", True),
    ("accuracy-rises-with-radius", "X,4/255,30;X,8/255,40;X,16/255,20", True),
    ("accuracy-rises-with-radius", "PGD,0.1,30;PGD,0.2,31", False),
    ("tiny-radius-has-a-large-effect", "clean,0,90;PGD,0.001,30", True),
    ("tiny-radius-has-a-large-effect", "clean,0,90;FGSM,1/1000,60;FGSM,0.1,50", True),
    ("tiny-radius-has-a-large-effect", "clean,0,90;PGD,0.001,80", False),
    ("tiny-radius-has-a-large-effect", "clean,0,90;PGD,1/255,30;FGSM,0.001,85", False),
    ("more-effort-is-weaker", "PGD-10,0.1,30;PGD-100,0.1,40", True),
    ("more-effort-is-weaker", "APGD-CE-20,0.1,30;APGD-CE-50,0.1,40", True),
    ("more-effort-is-weaker", "PGD-10,0.1,40;PGD-100,0.1,30", False),
    ("union-exceeds-a-member", "PGD,0.1,30;X,0.1,20;worst case,0.1,25", True),
    ("union-exceeds-a-member", "clean,0,90;PGD,0.1,80;X,0.1,80;union,0.1,60", True),
    ("union-exceeds-a-member", "clean,0,90;PGD,0.1,80;X,0.1,80;union,0.1,70", False),
    ("robust-exceeds-clean", "clean,0,90;FGSM,0.1,95", True),
    ("robust-exceeds-clean", "none,,90.0;PGD,0.1,92.5", True),
    ("robust-exceeds-clean", "clean,0,90;FGSM,0.1,90", False),
    ("count-and-percentage-differ", "PGD,0.1,30.07", True),
    ("count-and-percentage-differ", "PGD,0.1,0.05", True),
    ("count-and-percentage-differ", "PGD,0.1,30.1", False),
    ("denominator-is-not-stated", "PGD,0.1,30", False),
]


@pytest.mark.parametrize(("check", "rows", "wrong"), CASES)
def test_a_check_warns_of_inconsistent_rows_alone(
    tmp_path: Path, check: str, rows: str, wrong: bool
) -> None:
    lines = [f"{row.rsplit(',', 1)[0]},none,Linf,{row.rsplit(',', 1)[1]}%,1000,all"
             for row in rows.split(";")]  # fmt: skip
    (tmp_path / "t.csv").write_text(
        "attack,eps,defense,norm,accuracy,n,of\n" + "\n".join(lines), encoding="utf-8"
    )
    read = read_table(tmp_path / "t.csv")
    (result,) = [r for r in check_tables([read]) if r.check == check]
    assert (result.state is TableState.WARNING) == wrong
    assert result.state is not TableState.NOT_TESTED


@pytest.mark.parametrize(("n", "wrong"), [("100", False), ("10000", True), ("", True)])
def test_the_difference_that_counts_depends_on_the_number_of_examples(
    tmp_path: Path, n: str, wrong: bool
) -> None:
    """Three points are within two standard errors of 100 examples and beyond those of 10,000."""
    text = f"attack,defense,accuracy,n\nFGSM,a,50.0%,{n}\nPGD,a,53.0%,{n}\n"
    (tmp_path / "t.csv").write_text(text)
    assert (check_tables([read_table(tmp_path / "t.csv")])[0].state is TableState.WARNING) == wrong


def paired(tmp_path: Path, only_one_step: int, only_iterative: int) -> PublishedTable:
    """Table A's kind of rows, with the number of examples on which the two attacks differ."""
    rows = "\n".join(
        f'[[row]]\nattack = "{attack}"\ndefense = "a"\neps = "8/255"\n'
        f"accuracy = {accuracy}\nn = 100"
        for attack, accuracy in (("FGSM", 30), ("PGD", 41))
    )
    pair = '[[pair]]\ndefense = "a"\neps = "8/255"\none_step = "FGSM"\niterative = "PGD"\n'
    pair += f"only_one_step = {only_one_step}\nonly_iterative = {only_iterative}\n"
    (tmp_path / "t.toml").write_text(f"{rows}\n{pair}")
    return read_table(tmp_path / "t.toml")


@pytest.mark.parametrize(("one", "many", "wrong"), [(0, 11, True), (30, 41, False), (11, 0, False)])
def test_known_pairs_are_compared_by_the_exact_test(
    tmp_path: Path, one: int, many: int, wrong: bool
) -> None:
    """McNemar's p is .00098 for 0 and 11; .23 for 30 and 41."""
    result = check_tables([paired(tmp_path, one, many)])[0]
    assert (result.state is TableState.WARNING) == wrong


def test_the_denominator_is_converted_before_tables_are_compared(tmp_path: Path) -> None:
    head = "attack,defense,eps,accuracy,n,of\n"
    (tmp_path / "a.csv").write_text(head + "clean,a,0,80%,1000,all\nPGD,a,0.1,40%,1000,all\n")
    for of, accuracy, wrong in (("correct", 50, False), ("correct", 40, True), ("all", 50, True)):
        (tmp_path / "b.csv").write_text(head + f"PGD,a,0.1,{accuracy}%,800,{of}\n")
        tables = [read_table(tmp_path / name) for name in ("a.csv", "b.csv")]
        (result,) = [r for r in check_tables(tables) if r.check == "tables-contradict"]
        assert (result.state is TableState.WARNING) == wrong, (of, accuracy)
