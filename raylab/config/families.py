"""The families of methods, and which configuration the keys of a run are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from raylab.config.averaging import AVERAGING_METHODS, AveragingConfig
from raylab.config.parameter_server import SERVER_METHODS, ParameterServerConfig
from raylab.config.pipeline import METHODS, PipelineConfig

__all__ = ["ALL_METHODS", "FAMILIES", "Family", "NetworkConfig", "RunConfiguration", "family_of"]

NetworkConfig = PipelineConfig | AveragingConfig
"""The keys of a run that trains a network on images."""
RunConfiguration = NetworkConfig | ParameterServerConfig
"""The keys of one run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Methods with the same keys.

    Args:
        name: as result.json has it.
        title: in a sentence.
        methods: a line each.
        config: the keys.
    """

    name: str
    title: str
    methods: Mapping[str, str]
    config: type[RunConfiguration]

    @property
    def fields(self) -> Mapping[str, FieldInfo]:
        """The keys with their rules."""
        found: Mapping[str, FieldInfo] = self.config.model_fields
        return found


FAMILIES = (
    Family(
        name="pipeline",
        title="a network as a pipeline of stages",
        methods=METHODS,
        config=PipelineConfig,
    ),
    Family(
        name="averaging",
        title="replicas of a network that average",
        methods=AVERAGING_METHODS,
        config=AveragingConfig,
    ),
    Family(
        name="parameter_server",
        title="a server and its workers",
        methods=SERVER_METHODS,
        config=ParameterServerConfig,
    ),
)
"""All families; the first one's is the default method."""

ALL_METHODS = {name: line for family in FAMILIES for name, line in family.methods.items()}
"""Every method, a line each."""


def family_of(values: Mapping[str, Any]) -> Family:
    """Return the family whose keys these are, by their method; one that is unknown is the first's.

    >>> family_of({"method": "asysvrg"}).name
    'parameter_server'
    """
    method = values.get("method")
    if not isinstance(method, str):
        return FAMILIES[0]
    return next((family for family in FAMILIES if method in family.methods), FAMILIES[0])
