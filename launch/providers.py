"""The providers that a launch file chooses from, and what each needs to be told."""

from dataclasses import dataclass
from typing import Literal

from gemma_train.errors import UserError, require
from launch.names import IMAGE, LABEL, VARIABLE, check_name


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """Machines of a reservation of Compute Engine."""

    reservation: str

    def __post_init__(self) -> None:
        _check_labels(reservation=self.reservation)

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--reservation-affinity=specific", f"--reservation={self.reservation}")


type Capacity = Literal["on_demand", "spot"] | Reserved


@dataclass(frozen=True, kw_only=True)
class TpuVm:
    """TPU VMs through queued resources of the Cloud TPU API."""

    capacity: Literal["on_demand", "spot", "reserved"] = "on_demand"
    secrets: tuple[str, ...] = ()  # variables of the environment here that the run needs there

    def __post_init__(self) -> None:
        require(
            self.capacity in ("on_demand", "spot", "reserved"),
            f"provider.capacity is {self.capacity!r}: choose 'on_demand', 'spot' or 'reserved'",
        )
        _check_secrets(self.secrets)


@dataclass(frozen=True, kw_only=True)
class ManagedInstanceGroup:
    """One slice as a managed instance group of Compute Engine: v5p, of what launch knows."""

    capacity: Capacity = "on_demand"
    image_family: str = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
    image_project: str = "ubuntu-os-accelerator-images"
    secrets: tuple[str, ...] = ()  # variables of the environment here that the run needs there

    def __post_init__(self) -> None:
        _check_capacity(self.capacity)
        _check_labels(image_family=self.image_family, image_project=self.image_project)
        _check_secrets(self.secrets)


@dataclass(frozen=True, kw_only=True)
class Pathways:
    """Images of Google's Pathways containers, and the node pool where its head runs."""

    server_image: str
    proxy_image: str
    head_pool: str = "cpu-np"

    def __post_init__(self) -> None:
        _check_images(server_image=self.server_image, proxy_image=self.proxy_image)
        _check_labels(head_pool=self.head_pool)


@dataclass(frozen=True, kw_only=True)
class Gke:
    """A JobSet on a cluster that exists and has the JobSet controller."""

    cluster: str
    image: str  # built from launch/Dockerfile
    regional: bool = False  # a cluster of the zone's region; the nodes are in the zone
    namespace: str = "default"
    capacity: Capacity = "on_demand"
    secret: str | None = None  # a Kubernetes secret whose entries become variables of the run
    pathways: Pathways | None = None  # one process drives all slices, instead of one a host

    def __post_init__(self) -> None:
        _check_capacity(self.capacity)
        _check_images(image=self.image)
        _check_labels(cluster=self.cluster, namespace=self.namespace)
        if self.secret is not None:
            _check_labels(secret=self.secret)


def _check_capacity(capacity: Capacity) -> None:
    if not (isinstance(capacity, Reserved) or capacity in ("on_demand", "spot")):
        raise UserError(
            f"provider.capacity is {capacity!r}: choose 'on_demand', 'spot' or Reserved(...)"
        )


def _check_labels(**values: str) -> None:
    for field, value in values.items():
        check_name(f"provider.{field}", value, LABEL, "its name in the cloud")


def _check_images(**values: str) -> None:
    for field, value in values.items():
        check_name(f"provider.{field}", value, IMAGE, "HOST/PATH:TAG of an image")


def _check_secrets(names: tuple[str, ...]) -> None:
    for name in names:
        check_name("provider.secrets", name, VARIABLE, "names of variables, never their values")
