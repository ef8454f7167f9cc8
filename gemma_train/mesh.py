"""The device mesh (replica, data, seq) and the start of the runtime that holds its devices.

One seam for three runtimes: one process that sees every device, many processes that each see their
own (`jax.distributed`), and Pathways, where one process drives the devices of all. The mesh is
Explicit: shardings are part of types, a wrong one is an error when the step is traced.
"""

import importlib.util
import math
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from gemma_train.axes import MESH_AXES
from gemma_train.errors import UserError, require
from gemma_train.silence import silenced_standard_error

_PATIENCE = 5.0  # seconds in which those that end for one reason come to the end of jax's runtime


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices stand along each axis; their product is the number of devices used."""

    replica: int = 1  # whole copies of the parameters, each with its own sequences
    data: int = 1  # devices that share out sequences, parameters, gradients and moments
    seq: int = 1  # devices that share out the positions of a sequence, and parameters again
    runtime: Literal["one_process", "many_processes", "pathways"] = "one_process"  # who drives them
    topology: str | None = None  # TPU slice the run is meant for, as in v5p:16x16x24: see plan
    slices: int = 1  # such slices, joined by the data-center network; they lie along replica
    heartbeat_seconds: int = 100  # of many processes: how soon the others end when one is lost

    def __post_init__(self) -> None:
        for name in ("replica", "data", "seq", "slices"):
            size = getattr(self, name)
            require(size >= 1, f"mesh.{name} is {size}: it must be at least 1")
        require(
            self.heartbeat_seconds >= 10,
            f"mesh.heartbeat_seconds is {self.heartbeat_seconds}: it must be at least 10",
        )
        require(
            self.replica % self.slices == 0,
            f"mesh.slices is {self.slices}: it must divide mesh.replica, {self.replica}",
        )

    @property
    def devices(self) -> int:
        return self.replica * self.data * self.seq

    @property
    def axis_sizes(self) -> dict[str, int]:
        """The size of each mesh axis.

        Without a seq axis, data becomes two near-equal axes, so that parameters are gathered and
        gradients scattered in two short hops; with one, data and seq are the two hops.
        """
        minor = 1
        if self.seq == 1:
            minor = max(m for m in range(1, math.isqrt(self.data) + 1) if self.data % m == 0)
        return dict(
            zip(MESH_AXES, (self.replica, self.data // minor, minor, self.seq), strict=True)
        )


def start_runtime(config: MeshConfig) -> None:
    """Join the other processes, or Pathways; must run before anything touches a device.

    Many processes take coordinator, count and number from the variables JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, and what is not set from the cluster.
    """
    match config.runtime:
        case "one_process":
            _wake()
        case "many_processes":
            if not jax.distributed.is_initialized():
                count, number = map(os.environ.get, ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
                try:
                    jax.distributed.initialize(
                        num_processes=int(count) if count else None,
                        process_id=int(number) if number else None,
                        heartbeat_timeout_seconds=config.heartbeat_seconds,
                    )
                except ValueError as error:
                    raise UserError(
                        f"mesh.runtime is 'many_processes', but none is found ({error}): "
                        "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or "
                        "choose --mesh.runtime one_process"
                    ) from None
        case "pathways":
            try:
                import pathwaysutils
            except ImportError as error:
                raise UserError(
                    "mesh.runtime is 'pathways' but pathwaysutils is not installed: "
                    "pip install pathwaysutils"
                ) from error
            pathwaysutils.initialize()


def _wake() -> None:
    """Find the devices. Where libtpu is installed to plan with, it complains of the missing TPU."""
    if importlib.util.find_spec("libtpu") is None:
        return
    with silenced_standard_error():
        jax.devices()


def leave_runtime(code: int, error: Exception | None = None) -> None:
    """End this process soon, with its own exit code, if it is one of many; else do nothing.

    jax's own end waits minutes for all to come to it, says meanwhile that this one is alive, and
    then aborts. Those that end for the same reason come soon; one that waits within a collective
    ends by the heartbeat. The traceback of `error`, if there is one, is shown.
    """
    if not jax.distributed.is_initialized():
        return
    if error is not None:
        traceback.print_exception(error)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError):
            stream.flush()
    end = threading.Thread(target=_end_together, daemon=True)
    end.start()
    end.join(_PATIENCE)
    os._exit(code)


def _end_together() -> None:
    with suppress(Exception):
        jax.distributed.shutdown()


def is_leader() -> bool:
    """Whether this process is the one of its run that writes and prints."""
    return jax.process_index() == 0


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (all of the runtime's when None), laid out along the hardware.

    Raises `UserError` when the product of the axes is not the number of devices.
    """
    devices = list(jax.devices()) if devices is None else devices
    if config.devices != len(devices):
        raise UserError(
            f"mesh replica {config.replica} x data {config.data} x seq {config.seq} = "
            f"{config.devices} devices, but this runtime has {len(devices)}: "
            f"choose --mesh.replica, --mesh.data and --mesh.seq with product {len(devices)}"
        )
    sizes = config.axis_sizes
    return Mesh(
        _lay_out(tuple(sizes.values()), devices),
        tuple(sizes),
        axis_types=(AxisType.Explicit,) * len(sizes),
    )


def device_kind() -> str:
    """What the mesh in force is made of, as `jax.Device.device_kind` says; "" where none is.

    The devices may be there, or be described to the compiler only.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return "" if device is None else device.device_kind


def on_tpu() -> bool:
    """Whether the mesh in force is of TPUs."""
    return device_kind().startswith("TPU")


@contextmanager
def mesh_of(tree: Any) -> Iterator[None]:
    """Put the mesh of a tree's arrays in force, unless one is: for a call that stands alone.

    Raises `UserError` where the arrays were made on no mesh.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        yield
        return
    leaf = jax.tree.leaves(tree)[0]
    mesh = jax.typeof(leaf).sharding.mesh
    require(not mesh.empty, "no mesh is in force: call within jax.set_mesh(make_mesh(...))")
    with jax.sharding.use_abstract_mesh(mesh):  # the devices are known from the arrays
        yield


def _lay_out(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Devices in `shape`; slices joined by the slower network lie along replica, the first axis."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    require(
        shape[0] % slices == 0,
        f"mesh.replica is {shape[0]} over {slices} slices: it must be a multiple of {slices}",
    )
    within = (shape[0] // slices, *shape[1:])
    across = (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )
