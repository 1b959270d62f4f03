"""Names of variants are written and split."""

from __future__ import annotations

import pytest

from bench.core.errors import BenchError
from bench.core.variant_names import (
    base_name,
    is_variant,
    split_variant,
    variant_name,
    variant_order,
)


def test_names_are_split_into_text() -> None:
    assert split_variant("square[steps=5, share=0.3]") == ("square", {"steps": "5", "share": "0.3"})
    assert not is_variant("square-5000")
    assert base_name("square[steps=5]") == base_name("square") == "square"


def test_a_written_name_is_split_into_what_it_was_made_of() -> None:
    settings = {"steps": 5, "random_start": False, "loss": "dlr"}
    base, found = split_variant(variant_name("pgd", settings))
    assert (base, found) == ("pgd", {"steps": "5", "random_start": "false", "loss": "dlr"})


@pytest.mark.parametrize(
    "name", ["pgd[", "pgd[]", "[steps=1]", "pgd[steps]", "pgd[a=1,a=2]", "pgd"]
)
def test_a_name_that_cannot_be_read_is_refused_with_an_example_of_its_kind(name: str) -> None:
    with pytest.raises(BenchError, match=r"the attack .* as in pgd\[steps=100\]\.$"):
        split_variant(name)
    with pytest.raises(BenchError, match=r"the threat .* as in digits-linf\[eps=8/255\]\.$"):
        split_variant(name, "threat")


def test_variants_are_ordered_by_their_numbers_after_their_entry() -> None:
    ordered = [
        "pgd", "pgd[eps=1/255]", "pgd[eps=2/255]", "pgd[eps=16/255]", "pgd[eps=0.5]",
        "pgd[steps=5,rate=0.05]", "pgd[steps=5,rate=1e-1]", "pgd[steps=100,rate=0.05]",
        "pgd[steps=100,start=false]", "pgd-margin", "square-5000",
    ]  # fmt: skip
    assert sorted(set(ordered), key=variant_order) == ordered


def test_values_that_are_no_numbers_are_ordered_as_text() -> None:
    names = ["a[b=1/0]", "a[b=2/00]", "a[b=]", "a[b=x2]", "a[b=x10]", "a[", "a]"]
    assert sorted(names, key=variant_order) == sorted(names)
    assert sorted(["a[b=10]", "a[b=-2]", "a[b=-10]"], key=variant_order)[0] == "a[b=-10]"
