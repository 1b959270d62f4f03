"""What a plugin behind the walls says of itself; refused by name where no plugin says that."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.plugin import Retire
from bench.records import Access, PluginError
from bench.sandbox.cage import plain
from bench.sandbox.wire import Frame

Said = TypeVar("Said", bound="Facts")


class Facts(BaseModel):
    """What both kinds say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    cite: str = Field(max_length=200)
    summary: str = Field(max_length=4000)

    @classmethod
    def heard(cls: type[Said], who: str, frame: Frame) -> Said:
        """The facts of an answer; PluginError names the first that is none."""
        try:
            return cls.model_validate(frame.words.get("facts"))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the whole"
            raise PluginError(
                f"{who} says of itself what no plugin says: {plain(field)}: {plain(first['msg'])}."
            ) from error


class Word(BaseModel):
    """A claim."""

    model_config = ConfigDict(extra="forbid", strict=True)

    threat: str
    robust: float
    cite: str


class DefenseFacts(Facts):
    """The fields of a Defense that are values."""

    datasets: list[str]
    twin: str
    quick: bool
    forwards: int = Field(ge=1, le=10**6)
    rejects: float | None
    claims: list[Word]
    detail: dict[str, Any]
    draws: int | None = Field(ge=1, le=1000)
    stand_in: bool
    recipe: bool


class AttackFacts(Facts):
    """The attributes of an attack that are values, and which methods it has."""

    needs: Literal[tuple(Access.__members__)]  # type: ignore[valid-type]
    steps: int = Field(ge=1)
    retires: Literal[tuple(kind.value for kind in Retire)]  # type: ignore[valid-type]
    minimises: bool
    norms: list[str]
    goals: list[str]
    source: str
    joint: bool
    whole: bool
    methods: list[Literal["runs", "done", "stays"]]
    parameters: dict[str, Any]
