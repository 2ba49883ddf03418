"""The device, its driver and versions, and what it can do at best."""
import platform
import statistics
import subprocess
import time

import torch
from measure import forward_flops, machine, timed

from utils.device import synchronize

QUERY = {"driver_version": "driver", "clocks.sm": "SM clock, MHz", "clocks.mem": "memory clock, MHz",
         "clocks.max.sm": "highest SM clock, MHz", "power.draw": "power, W", "power.limit": "power limit, W",
         "temperature.gpu": "temperature, °C"}


def describe_device(bench) -> None:
    """The row `device`."""
    bench.row("device", lambda: _figures(bench))


def _figures(bench) -> dict:
    device, figures = bench.device, {"kind": bench.device.type, **machine(bench.device)}
    figures["system"] = platform.platform(terse=True)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        figures |= {"CUDA": torch.version.cuda or "none", "cuDNN": torch.backends.cudnn.version() or "none",
                    "compute capability": f"{properties.major}.{properties.minor}",
                    "multiprocessors": properties.multi_processor_count, "memory, GB": properties.total_memory / 1e9}
        figures |= {f"idle: {name}": value for name, value in clocks(device).items()}
    product, flops = bench.product()
    seconds = [timed(product, device)() for _ in range(bench.rounds + 1)][1:]
    figures["bf16 product, TFLOP/s"] = flops / statistics.median(seconds) / 1e12
    figures["copy in memory, GB/s"] = copy_rate(bench)
    if device.type == "cuda":
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            product()
            synchronize(device)
        for _ in range(100):  # about a second of queued work, while nvidia-smi answers
            product()
        figures |= {f"busy: {name}": value for name, value in clocks(device).items()}
        synchronize(device)
    figures["forward pass, GFLOP"] = forward_flops(bench.shape, bench.side, device)["total"] / 1e9
    return figures


def copy_rate(bench) -> float:
    """GB/s, bytes read and bytes written, of a copy that no cache holds."""
    source = torch.randn(2**18 if bench.tiny else 2**29, device=bench.device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), bench.device)() for _ in range(bench.rounds + 1)][1:]
    return 2 * source.nbytes / statistics.median(seconds) / 1e9


def clocks(device: torch.device) -> dict[str, str]:
    """What nvidia-smi says of the device; nothing where it does not answer. Settings are read, never changed."""
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    which = f"GPU-{uuid.removeprefix('GPU-')}" if uuid else str(device.index or 0)
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits", "-i",
                               which], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout.strip() else []
    return dict(zip(QUERY.values(), values, strict=False))
