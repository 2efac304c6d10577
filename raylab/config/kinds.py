"""The kinds of values that keys have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

__all__ = ["Count", "Natural", "NotNegative", "Positive", "Share", "Text"]

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
