"""The devices of TPU slices, as the TPU compiler describes them on any Linux machine.

They are there to be compiled for, and run nothing.
"""

import math
import os

import jax
from jax.experimental import topologies

from gemma_train.planning.slices import Slices
from gemma_train.silence import silenced_standard_error


class NoCompiler(Exception):
    """The TPU compiler is not on this machine, or does not start; says why."""


def devices(slices: Slices) -> list[jax.Device]:
    """The devices of these slices, to compile for. Raises `NoCompiler` where there is no libtpu."""
    # Without the first, libtpu asks a metadata server that is not there; without the second,
    # another process that uses libtpu makes this one abort.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict = {"num_slices": slices.count}
    if slices.chip.generation == "v4":
        options["chip_config_name"] = "megacore"  # otherwise each core is a device
    if math.prod(slices.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)

    def made() -> list[jax.Device] | Exception:
        """An error that has its own words leaves the noise behind."""
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=slices.name, **options
            )
        except (ImportError, RuntimeError, NotImplementedError) as error:
            return error
        return list(description.devices)

    with silenced_standard_error():
        found = made()
    if isinstance(found, Exception):
        raise NoCompiler((str(found) or type(found).__name__).splitlines()[0]) from found
    return found
