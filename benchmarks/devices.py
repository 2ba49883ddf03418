"""What devices can do at most, by their data sheets, and what this CPU does, measured."""
import statistics
from dataclasses import dataclass

import torch
from measure import matrix_rate, timed


@dataclass(frozen=True)
class Device:
    """Peak rates of a device, without sparsity.

    Attributes:
        name: as `--device` takes it.
        bf16, tf32, float32: matrix products per second, floating-point operations.
        bandwidth: of its memory, bytes per second.
        link: bytes per second each way between the devices of one machine.
        source: of these figures.
    """

    name: str
    bf16: float
    tf32: float
    float32: float
    bandwidth: float
    link: float
    source: str

    def rate(self, name: str, dtype: str, tf32: bool) -> float:
        """Operations per second of an operator.

        Args:
            name: ATen's; PyTorch lets convolutions use TF32 by default, matrix products with `tf32` alone.
            dtype: as `Operator.dtype`.
        """
        if dtype in ("bfloat16", "float16"):
            return self.bf16
        return self.tf32 if tf32 or "convolution" in name else self.float32


DEVICES = {device.name: device for device in (
    Device("H100", 989.4e12, 494.7e12, 66.9e12, 3.35e12, 450e9,
           "NVIDIA H100 Tensor Core GPU data sheet and architecture whitepaper, SXM5 80 GB"),
    Device("H200", 989.5e12, 494.5e12, 67e12, 4.8e12, 450e9, "NVIDIA H200 Tensor Core GPU data sheet, SXM 141 GB"),
    Device("A100", 312e12, 156e12, 19.5e12, 2.039e12, 300e9, "NVIDIA A100 Tensor Core GPU data sheet, SXM4 80 GB"),
    Device("4090", 165.2e12, 82.6e12, 82.6e12, 1.008e12, 32e9,
           "NVIDIA Ada GPU architecture whitepaper, GeForce RTX 4090, accumulating in float32; PCIe 4.0 x16"),
    Device("910B", 313e12, 78e12, 78e12, 1.6e12, 28e9,
           "uncertain: Huawei publishes no data sheet of the chip. 313 TFLOP/s in 16 bits is an eighth of what is said "
           "of one Atlas 800T A2 server (variants: 280 and 376); float32 is taken as a quarter of it, 1.6 TB/s and "
           "28 GB/s per link are figures reported by others"),
)}


def this_cpu() -> tuple[Device, float]:
    """The CPU's own rates with as many threads as PyTorch uses, and the seconds that an operator takes at least.

    The rate is that of a float32 product of 2048³, the bandwidth that of copying 256 MB, read and written.
    """
    cpu = torch.device("cpu")
    product, flops = matrix_rate(cpu, torch.float32)
    source, target = torch.ones(2, 2 ** 26)
    number = torch.ones(1)

    def seconds(function, rounds: int = 7) -> float:
        function()
        return statistics.median(timed(function, cpu)() for _ in range(rounds))

    rate = flops / seconds(product)
    bandwidth = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    launch = seconds(lambda: [number + 1 for _ in range(1000)]) / 1000
    return Device("this CPU", rate, rate, rate, bandwidth, 0.0, "measured"), launch
