"""Peak dense FLOP/s of the accelerators that JAX names, and model FLOPs utilization (MFU).

Figures are per `jax.Device`, without sparsity. The name must be known exactly: a part of a chip
(MIG) or a new product gives None, never a guess.
"""

from typing import Literal, NamedTuple


class Peak(NamedTuple):
    """Dense FLOP/s of one device; None where the maker publishes no figure."""

    bfloat16: float
    float32: float | None = None


# NVIDIA's data sheets give bf16 with sparsity, twice the dense rate; float32 is that of the
# ordinary cores, not TF32.
_A100 = Peak(312e12, 19.5e12)  # nvidia.com: NVIDIA A100 Tensor Core GPU data sheet, 2021
_H100_SXM = Peak(1979e12 / 2, 67e12)  # nvidia.com: NVIDIA H100 Tensor Core GPU data sheet
_H100_PCIE = Peak(1513e12 / 2, 51e12)  # the same sheet, edition with the PCIe column, 2022
_H100_NVL = Peak(1671e12 / 2, 60e12)  # the same sheet
_H200_SXM = Peak(1979e12 / 2, 67e12)  # nvidia.com: NVIDIA H200 Tensor Core GPU data sheet
_H200_NVL = Peak(1671e12 / 2, 60e12)  # the same sheet

_TPU_V4 = Peak(275e12)  # docs.cloud.google.com/tpu/docs/v4
_TPU_V5E = Peak(197e12)  # docs.cloud.google.com/tpu/docs/v5e
_TPU_V5P = Peak(459e12)  # docs.cloud.google.com/tpu/docs/v5p
_TPU_V6E = Peak(918e12)  # docs.cloud.google.com/tpu/docs/v6e
# docs.cloud.google.com/tpu/docs/tpu7x: 2307 TFLOP/s a chip. A chip has two TensorCores and no
# megacore (docs.jax.dev, jax.experimental.pallas.tpu.ChipVersion), so JAX sees two devices.
_TPU_7X = Peak(2307e12 / 2)

# The TPU names: jax/_src/pallas/mosaic/tpu_info.py, `chip_version_from_device_kind`.
PEAKS: dict[str, Peak] = {
    "TPU v4": _TPU_V4,
    "TPU v5 lite": _TPU_V5E,
    "TPU v5e": _TPU_V5E,
    "TPU v5": _TPU_V5P,
    "TPU v5p": _TPU_V5P,
    "TPU v6 lite": _TPU_V6E,
    "TPU v6e": _TPU_V6E,
    "TPU7x": _TPU_7X,
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA H100 NVL": _H100_NVL,
    "NVIDIA H200": _H200_SXM,
    "NVIDIA H200 NVL": _H200_NVL,
}


def peak_flops(
    device_kind: str, dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> float | None:
    """Dense FLOP/s of one device by its `jax.Device.device_kind`; None if unknown, as for CPUs."""
    peak = PEAKS.get(device_kind)
    return getattr(peak, dtype) if peak else None


def model_flops_utilization(
    flops_per_second: float, chips: int, peak: float | None
) -> float | None:
    """The share (0 to 1) of `chips` devices' `peak` FLOP/s that the model's own FLOPs use.

    `flops_per_second` is that of the whole run and counts the mathematics of the model once:
    rematerialized work is left out (PaLM, arXiv:2204.02311, appendix B). None without a peak.
    """
    return flops_per_second / (chips * peak) if peak else None
