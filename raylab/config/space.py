"""What a search may choose for the keys of a run, checked before anything starts.

A space is a mapping of keys to domains (raylab/config/domain.py), which may depend on each other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from raylab.config.domain import Domain, domain_of, is_number
from raylab.config.families import Family, family_of
from raylab.config.parse import lay, run_config
from raylab.documents import shown
from raylab.errors import ConfigError

__all__ = ["base_of", "family_of_space", "space_of"]

_OWN = ("storage", "name")
"""Keys that a tuning gives its runs."""


def space_of(given: Mapping[str, Any], train: Mapping[str, Any]) -> tuple[Domain, ...]:
    """Return the domains of a space, each behind those that it depends on.

    Args:
        given: by key, as YAML has it.
        train: the other keys of a run.

    Raises:
        ConfigError: a key or a value is none of a run's, or conditions do not go together.
    """
    if not given:
        raise ConfigError(
            "a space must have a key, for instance lr: {uniform: [0.001, 1], log: true}"
        )
    domains = {key: domain_of(key, rule) for key, rule in given.items()}
    family_of_space(domains, train)
    base = base_of(given, train)
    for domain in domains.values():
        _check_key(domain, train, base)
        _check_conditions(domain, domains, train)
    return tuple(domains[key] for key in _ordered(domains))


def base_of(given: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `train` with a method, the first one of those that are searched over."""
    rule = given.get("method")
    methods = rule.get("choice") if isinstance(rule, Mapping) else None
    if "method" in train or not isinstance(methods, Sequence) or not methods:
        return dict(train)
    return {**train, "method": methods[0]}


def family_of_space(domains: Mapping[str, Domain], train: Mapping[str, Any]) -> Family:
    """Return the family that all methods of a search belong to.

    Raises:
        ConfigError: they are of several.
    """
    methods = domains["method"].choices if "method" in domains else (train.get("method", "adl"),)
    families = {family.name: family for family in (family_of({"method": m}) for m in methods)}
    if len(families) > 1:
        raise ConfigError(
            f"the methods of a search must be of one family, but got {', '.join(map(str, methods))}"
            ": search one family after the other"
        )
    return next(iter(families.values()))


def _check_key(domain: Domain, train: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    outer = domain.key.partition(".")[0]
    if outer in _OWN:
        raise ConfigError(f"`{outer}` is not searched over: a tuning gives it to its runs")
    if domain.key in train and not domain.when:
        raise ConfigError(
            f"`{domain.key}` must stand in train or in space, but stands in both: leave it out of "
            "one of them"
        )
    for value in domain.ends:
        values = copy.deepcopy(dict(base))
        lay(values, domain.key, value)
        try:
            run_config(values)
        except ConfigError as error:
            # The base itself was looked at before: what is wrong is of this key.
            hint = ""
            if domain.kind == "uniform" and "whole number" in str(error):
                hint = ": say int in place of uniform"
            raise ConfigError(f"space.{domain.key}: {error}{hint}") from None


def _check_conditions(
    domain: Domain, domains: Mapping[str, Domain], train: Mapping[str, Any]
) -> None:
    for name, values in domain.when.items():
        if name == domain.key or (name not in domains and name not in train):
            raise ConfigError(
                f"`space.{domain.key}.when` must name other keys of space or train, but got {name}"
            )
        possible = [v for v in values if name not in domains or domains[name].holds(v)]
        if name in domains and not possible:
            raise ConfigError(
                f"`space.{domain.key}.when` must be possible, but {name} is never "
                f"{' or '.join(map(shown, values))}"
            )
    if domain.below is None:
        return
    other = domains.get(domain.below)
    least: Any = other.low if other is not None else train.get(domain.below)
    if (other is not None and other.kind == "choice") or not is_number(least):
        raise ConfigError(
            f"`space.{domain.key}.below` must name a key with a range in space or a number in "
            f"train, but got {domain.below}"
        )
    if other is not None and not set(other.when.items()) <= set(domain.when.items()):
        raise ConfigError(
            f"`space.{domain.key}` stays below {domain.below}, which has a condition, so it must "
            f"have the same, but got when: {shown(dict(domain.when))}"
        )
    if not domain.low < least:
        raise ConfigError(
            f"`space.{domain.key}` must begin below {domain.below}, which may be {least:g}, but "
            f"begins at {domain.low:g}: raise the one or lower the other"
        )


def _ordered(domains: Mapping[str, Domain]) -> list[str]:
    """Return the keys, each behind those that it depends on, else as they stand."""
    done: list[str] = []
    left = list(domains)
    while left:
        ready = [
            key
            for key in left
            if not ({*domains[key].when, domains[key].below} & set(left) - {key})
            and domains[key].below != key
        ]
        if not ready:
            raise ConfigError(
                f"conditions must not go in a circle, but those of {', '.join(left)} do: leave one "
                "out"
            )
        done += ready
        left = [key for key in left if key not in ready]
    return done
