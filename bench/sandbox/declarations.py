"""The declarations of a sandboxed plugin, validated field by field in the harness."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.core.errors import PluginError
from bench.plugin import StopRule
from bench.registry.validation import MAX_STEPS
from bench.sandbox.process import printable
from bench.sandbox.protocol import Frame
from bench.threats.access import Access

DeclarationsT = TypeVar("DeclarationsT", bound="Declarations")


class Declarations(BaseModel):
    """Fields of defenses and attacks alike."""

    model_config = ConfigDict(extra="forbid", strict=True)

    cite: str = Field(max_length=200)
    summary: str = Field(max_length=4000)

    @classmethod
    def parse(cls: type[DeclarationsT], title: str, frame: Frame) -> DeclarationsT:
        """The declarations in a worker's reply; `title` names the plugin in messages.

        Raises PluginError that names the first invalid field.
        """
        try:
            return cls.model_validate(frame.header.get("declarations"))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the whole"
            raise PluginError(
                f"{title} declares an invalid field: {printable(field)}: {printable(first['msg'])}."
            ) from error


class ClaimDeclaration(BaseModel):
    """A claimed robust accuracy."""

    model_config = ConfigDict(extra="forbid", strict=True)

    threat: str
    robust: float
    cite: str


class DefenseDeclarations(Declarations):
    """The fields of a Defense that are plain values."""

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
    """The attributes of an attack that are plain values, and its optional methods."""

    needs: Literal[tuple(Access.__members__)]  # type: ignore[valid-type]
    steps: int = Field(ge=1, le=MAX_STEPS)
    stop_rule: Literal[tuple(kind.value for kind in StopRule)]  # type: ignore[valid-type]
    minimises: bool
    norms: list[str]
    goals: list[str]
    coordinates: bool
    written_for: list[str]
    source: str
    eot_draws: int = Field(ge=0, le=1000)
    examples: int = Field(ge=0, le=10**9)
    joint: bool
    samples: bool
    rows: int = Field(ge=0)
    external: bool
    methods: list[Literal["restart_count", "done", "stays"]]
    parameters: dict[str, Any]
