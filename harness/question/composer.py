"""Many compositions of one base, each in milliseconds. Must not import torch, transformers or wandb.

Hydra composes once per combination of group options; plain `key=value` overrides are then applied to a copy
of the typed tree with the call that Hydra itself makes for them.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config.compose import (
    compose_run,
    compose_tree,
    group_options,
    known_keys,
    parse_override,
    prepare_overrides,
    run_config,
)
from harness.config.schema import RunConfig
from harness.errors import RequestError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


class Composer:
    """Composes runs that share their first overrides; what `compose_run` refuses, it refuses in its words."""

    def __init__(self, base: Sequence[str]) -> None:
        self._base = list(base)
        self._groups = frozenset(group_options())
        self._keys = frozenset(known_keys())
        self._trees: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> RunConfig:
        """Return `compose_run([*base, *overrides])`. Raises RequestError as that does."""
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        given = [*self._base, *overrides]
        groups: list[str] = []
        fields: list[Override] = []
        for text in prepare_overrides(given):
            override = parse_override(text)[1]
            if self._is_group_choice(override):
                groups.append(text)
            elif self._is_plain_field(override):
                fields.append(override)
            else:
                return compose_run(given)
        try:
            tree = copy.deepcopy(self._tree_of(tuple(groups)))
            for field in fields:
                OmegaConf.update(tree, field.key_or_group, field.value(), merge=True)
            return run_config(tree)
        except (HydraException, OmegaConfBaseException, RequestError):
            return compose_run(given)  # which refuses it, too, and says why as for a plain run

    def _is_group_choice(self, override: "Override") -> bool:
        return _is_plain(override) and override.key_or_group in self._groups

    def _is_plain_field(self, override: "Override") -> bool:
        return _is_plain(override) and override.key_or_group in self._keys

    def _tree_of(self, groups: tuple[str, ...]) -> "DictConfig":
        if groups not in self._trees:
            self._trees[groups] = compose_tree(groups)
        return self._trees[groups]


def _is_plain(override: "Override") -> bool:
    """Whether an override is `key=value`, without +, ~ or a package."""
    from hydra.core.override_parser.types import OverrideType

    return override.type is OverrideType.CHANGE and override.package is None
