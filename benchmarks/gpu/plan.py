"""What bench_gpu.py measures, the most important first. Imports no PyTorch, so that --help answers at once.

A task is one process and gives one or more rows; a row is one line of the results.
"""
from dataclasses import dataclass, field

PARTS = {"right": "Right", "training": "Training", "evaluation": "Evaluation and prediction", "feeding": "Feeding",
         "kernels": "Where the time goes"}
DEVICE = "device"  # the part that is always measured, first

SYNC = "only on CUDA can PyTorch refuse host syncs (torch.cuda.set_sync_debug_mode)"
TF32 = "only CUDA GPUs have TensorFloat-32"
CUDNN = "cuDNN is for CUDA GPUs"
COMPILING = "on CUDA GPUs only: code generation for a CPU takes minutes"
MEMORY = "on CUDA GPUs only: filling a computer's own memory would stop other programs"

READERS, TINY_READERS = (8, 16), (1, 2)  # worker processes


@dataclass(frozen=True)
class Row:
    """A line of the results; `cuda` says why it is left out on other devices, empty where it is not."""

    name: str
    cuda: str = ""


@dataclass(frozen=True)
class Task:
    """A process.

    Args:
        name: unique.
        part: of PARTS.
        function: `module:function` in benchmarks/gpu/, called with a `child.Bench`.
        rows: what it gives, in this order.
        least: seconds that must be left for it to start.
        most: seconds after which it is ended.
        environment: variables of the process.
    """

    name: str
    part: str
    function: str
    rows: tuple[Row, ...]
    least: float
    most: float
    environment: dict[str, str] = field(default_factory=dict)


def tasks(tiny: bool) -> list[Task]:
    """All tasks in their order."""
    return [
        Task("device", DEVICE, "device:describe_device", (Row("device"),), 0, 60),
        Task("networks", "right", "right:networks", (
            Row("published figures, float32"), Row("no host sync in a training step", SYNC),
            Row("a training step against the CPU"), Row("bf16 masks against float32")), 20, 90),
        Task("training", "training", "training:eager", (
            Row("bf16"), Row("bf16, channels-last"), Row("TF32", TF32), Row("float32")), 20, 120),
        Task("evaluation", "evaluation", "evaluation:eager", (
            Row("bf16, batch 1"), Row("bf16, batch 32"), Row("bf16, sentences about a pair"), Row("float32, batch 1"),
            Row("float32, batch 32"), Row("float32, sentences about a pair"), Row("a pair from file to file, bf16"),
            Row("a pair from file to file, float32")), 20, 110),
        Task("training-compiled", "training", "training:compiled", (Row("bf16, compiled", COMPILING),), 60, 300),
        Task("kernels", "kernels", "kernels:training_step", (Row("the best training row"),), 30, 90),
        Task("feeding-run", "feeding", "feeding:training_run", (Row("train_with_lavt.py"),), 40, 100),
        Task("resume-deterministic", "right", "resume:deterministic", (Row("resume, deterministic algorithms"),), 20,
             60, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}),
        Task("resume", "right", "resume:by_default", (
            Row("resume, PyTorch's defaults"), Row("resume, cudnn.deterministic", CUDNN)), 25, 80),
        Task("reading", "feeding", "feeding:reading", tuple(
            Row(f"reading, workers: {count}") for count in (TINY_READERS if tiny else READERS)), 20, 60),
        Task("largest-batch", "training", "training:largest_batch", (Row("largest batch, bf16", MEMORY),), 30, 60),
        Task("largest-batch-checkpointing", "training", "training:largest_batch_checkpointing", (
            Row("largest batch, bf16 and --grad-checkpointing", MEMORY),), 30, 60),
        Task("compiled-1", "evaluation", "evaluation:compiled_1", (
            Row("bf16, compiled with CUDA graphs, batch 1", COMPILING),), 45, 110),
        Task("compiled-step", "right", "compiled:same_numbers", (
            Row("--torchcompile gives the same numbers", COMPILING),), 45, 110),
        Task("compiled-32", "evaluation", "evaluation:compiled_32", (
            Row("bf16, compiled with CUDA graphs, batch 32", COMPILING),), 45, 110),
    ]
