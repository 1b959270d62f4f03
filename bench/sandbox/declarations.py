"""What a plugin behind the walls says of itself; refused by name where no plugin says that."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.core.errors import PluginError
from bench.plugin import StopRule
from bench.sandbox.process import printable
from bench.sandbox.protocol import Frame
from bench.threats.access import Access

Text = TypeVar("Text", bound="Declarations")


class Declarations(BaseModel):
    """What both kinds say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    cite: str = Field(max_length=200)
    summary: str = Field(max_length=4000)

    @classmethod
    def heard(cls: type[Text], who: str, frame: Frame) -> Text:
        """The facts of an answer; PluginError names the first that is none."""
        try:
            return cls.model_validate(frame.words.get("facts"))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the whole"
            raise PluginError(
                f"{who} declares an invalid field: {printable(field)}: {printable(first['msg'])}."
            ) from error


class ClaimDeclaration(BaseModel):
    """A claim."""

    model_config = ConfigDict(extra="forbid", strict=True)

    threat: str
    robust: float
    cite: str


class DefenseDeclarations(Declarations):
    """The fields of a Defense that are values."""

    datasets: list[str]
    surrogate: str
    quick: bool
    forwards: int = Field(ge=1, le=10**6)
    rejects: float | None
    claims: list[ClaimDeclaration]
    draws: int | None = Field(ge=1, le=1000)
    bpda: bool
    recipe: bool


class AttackDeclarations(Declarations):
    """The attributes of an attack that are values, and which methods it has."""

    needs: Literal[tuple(Access.__members__)]  # type: ignore[valid-type]
    steps: int = Field(ge=1)
    stop_rule: Literal[tuple(kind.value for kind in StopRule)]  # type: ignore[valid-type]
    minimises: bool
    norms: list[str]
    goals: list[str]
    source: str
    joint: bool
    samples: bool
    whole: bool
    methods: list[Literal["restart_count", "done", "stays"]]
    parameters: dict[str, Any]
