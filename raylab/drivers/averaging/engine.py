"""Ray Train, as averaging runs need it: in a placement group that is there, if there is one.

Ray Train's controller makes a placement group for every worker group and removes it. Here it can be
given room in another's instead, which stays (`actors.groups.within`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
    DefaultPlacementGroupHandle,
    PlacementGroupHandle,
)
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import get_node
from ray.util.state.exception import RayStateApiException

from actors.groups.within import Room

__all__ = ["Engine"]

_PATIENCE_S = 5


class Engine(TorchTrainer):
    """`TorchTrainer` in another's placement group, or in its own.

    Args:
        train: runs in every worker.
        room: for the workers; None: Ray Train looks for it in the cluster.
        more: of the arguments of `TorchTrainer`.
    """

    def __init__(self, train: Any, *, room: Room | None, **more: Any) -> None:
        super().__init__(train, **more)
        self._room = room

    def _create_default_callbacks(self) -> list[Any]:
        found = super()._create_default_callbacks()
        if self._room is None and _knows_actors():
            return found
        # This one removes the placement group of a controller that has died, and asks the state
        # API every second whether it has. Another's is not ours to remove; and a session without
        # the API is a local one, which goes with its driver.
        return [each for each in found if not isinstance(each, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if self._room is None:
            return super()._initialize_and_run_controller(**arguments)
        # Beside the driver, as Ray Train has it, and not in the placement group, whose bundles are
        # the workers', though a driver in there may hand that on to whom it starts.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        variables = get_env_vars_to_propagate()
        variables.setdefault(
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
            DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        )
        options = {
            "num_cpus": 0,
            "scheduling_strategy": here,
            "runtime_env": {"env_vars": variables},
        }
        actor: Any = ray.remote(_Controller)
        room = (self._room.group, list(self._room.bundles))
        controller = actor.options(**options).remote(*room, **arguments)
        if threading.current_thread() is threading.main_thread():
            self._register_sigint_handler(controller)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class _Controller(TrainController):
    """A controller whose worker groups live on bundles that are there.

    Args:
        group: that they are of.
        bundles: of the workers.
        arguments: of Ray Train's.
    """

    def __init__(self, group: PlacementGroup, bundles: Sequence[int], **arguments: Any) -> None:
        class Workers(_Workers):
            room = _Lent(group)
            places = bundles

        self.worker_group_cls = Workers
        super().__init__(**arguments)


class _Lent(DefaultPlacementGroupHandle):
    """A placement group that others will remove."""

    def shutdown(self) -> None:
        """Leave it as it is."""


class _Workers(WorkerGroup):
    """Workers on bundles that are there."""

    room: PlacementGroupHandle
    places: Sequence[int]

    def _create_placement_group(self, *_: Any) -> PlacementGroupHandle:
        return self.room

    def _create_workers(self, num_workers: int, *about: Any, **more: Any) -> Any:
        more.setdefault("placement_group_bundle_indices", self.places[:num_workers])
        return super()._create_workers(num_workers, *about, **more)


def _knows_actors() -> bool:
    """Tell whether the session has the API that tells who is alive: it must know this node, as the
    address of one that is not there may be that of another session's.
    """
    context = ray.get_runtime_context()
    try:
        here = get_node(context.get_node_id(), address=context.gcs_address, timeout=_PATIENCE_S)
    except (RayStateApiException, OSError):
        return False
    return here is not None
