"""Tables of published figures are read with every printed digit."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.errors import BenchError
from bench.results.foreign_table import PrintedShare, printed_share, read_table

HEAD = "attack,defense,norm,eps,accuracy,n\n"


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_csv_file_is_read(tmp_path: Path) -> None:
    text = "\ufeff" + HEAD + "FGSM,none,Linf,8/255,22.0%,1000\nPGD-20,none,Linf,0.031,7,\n"
    read = read_table(table(tmp_path, text))
    fgsm, pgd = read.figures
    assert read.name == "t"
    assert (fgsm.eps, pgd.eps) == (Fraction(8, 255), Fraction(31, 1000))
    assert fgsm.accuracy == PrintedShare(Fraction(22, 100), Fraction(1, 1000))
    assert pgd.accuracy == PrintedShare(Fraction(7, 100), Fraction(1, 100))
    assert (fgsm.n, pgd.n) == (1000, None)
    assert (fgsm.steps, pgd.steps, pgd.base) == (1, 20, "pgd")


def test_a_toml_file_gives_its_values_to_rows_without_them(tmp_path: Path) -> None:
    text = """n = 500
norm = "L2"
clean = 0.90
[[row]]
attack = "PGD"
defense = "a"
eps = 0.50
accuracy = 0.10
[[row]]
attack = "worst case"
defense = "a"
eps = 1
accuracy = "0.050"
n = 100
union_of = ["PGD", "FGSM"]
"""
    first, second, clean = read_table(table(tmp_path, text, "t.toml")).figures
    assert (first.n, first.norm, first.eps) == (500, "L2", Fraction(1, 2))
    assert first.accuracy == PrintedShare(Fraction(1, 10), Fraction(1, 100))
    assert (second.n, second.union_of, second.accuracy.unit) == (
        100, ("PGD", "FGSM"), Fraction(1, 1000),
    )  # fmt: skip
    assert clean.is_clean and clean.accuracy.value == Fraction(9, 10)


@pytest.mark.parametrize(
    ("values", "scale"),
    [(["0.5", "1"], 1), (["0.5", "1.5"], 100), (["0.5%"], 100), (["0", "1.0"], 1), (["97"], 100)],
)
def test_percentages_are_told_from_shares(tmp_path: Path, values: list[str], scale: int) -> None:
    rows = "".join(f"PGD,none,Linf,{i},{value},\n" for i, value in enumerate(values))
    figures = read_table(table(tmp_path, HEAD + rows)).figures
    expected = [Fraction(value.rstrip("%")) / scale for value in values]
    assert [figure.accuracy.value for figure in figures] == expected


@given(st.integers(1, 20000), st.data(), st.integers(0, 3))
def test_a_share_matches_itself_rounded_or_cut_off(n: int, data: st.DataObject, d: int) -> None:
    k = data.draw(st.integers(0, n))
    share = Fraction(k, n)
    cut = Fraction(int(share * 100 * 10**d), 10**d)
    for printed in (f"{float(cut):.{d}f}", f"{100 * k / n:.{d}f}"):
        if Fraction(printed) <= 100:
            assert printed_share(printed, 100).matches(share)
    beyond = cut + Fraction(2, 10**d)
    if beyond <= 100:
        assert not printed_share(f"{float(beyond):.{d}f}", 100).matches(share)


WRONG = {
    "no number": (HEAD + "PGD,none,Linf,0.1,abc,", "'abc' is no number from 0 to 1"),
    "above": (HEAD + "PGD,none,Linf,0.1,101%,", "'101%' is no number from 0 to 100"),
    "negative": (HEAD + "PGD,none,Linf,0.1,-1,", "'-1' is no number"),
    "nan": (HEAD + "PGD,none,Linf,0.1,nan,", "'nan' is no number"),
    "eps": (HEAD + "PGD,none,Linf,8/0,5,", "eps is '8/0'"),
    "negative eps": (HEAD + "PGD,none,Linf,-1,5,", "eps is '-1'"),
    "n": (HEAD + "PGD,none,Linf,0.1,5,1e3", "n is '1e3'; write a whole number"),
    "column": ("attack,defense,accuracy,speed\nPGD,a,5,1", "row.0.speed: Extra inputs"),
    "missing column": ("attack,defense\nPGD,a", "row.0.accuracy: Field required"),
    "ragged": (HEAD + "PGD,none", "more or fewer values than its header"),
    "too wide": (HEAD + "PGD,none,Linf,1,5,6,7", "more or fewer values than its header"),
    "empty": ("", "it has no rows"),
    "header alone": (HEAD, "it has no rows"),
    "of": ("attack,defense,accuracy,of\nPGD,a,5,most", "row.0.of: Input should be"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_table_that_is_not_in_order_is_refused_by_name(tmp_path: Path, case: str) -> None:
    text, sentence = WRONG[case]
    with pytest.raises(BenchError) as caught:
        read_table(table(tmp_path, text))
    assert sentence in str(caught.value)
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.toml", b"a = ", "is no TOML file"),
        ("t.toml", b"[[row]]\nattack = 1\n", "defense: Field required"),
        ("t.csv", b"\xff\xfe", "cannot be read"),
        ("t.xlsx", b"PK", "is neither .csv nor .toml"),
        ("t", b"", "is neither .csv nor .toml"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchError, match=sentence):
        read_table(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be read"):
        read_table(tmp_path / "none.csv")
