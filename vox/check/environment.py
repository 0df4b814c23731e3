"""What this machine is, and what about it is known to cause trouble."""

import ctypes
import importlib
import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile
import torch

import vox
from vox.data.workers import MIN_SHARED_BYTES, SHARED_MEMORY
from vox.disk import free_bytes

GIGABYTE = 1e9
BF16_CAPABILITY = (8, 0)
PACKAGES = ("torch", "torchaudio", "transformers", "h5py", "soundfile")
AUDIO_FORMATS = ("FLAC", "WAV", "OGG", "MP3")
NVIDIA_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")  # the last is that of Windows' Linux
DRIVER_FILE = Path("/proc/driver/nvidia/version")
CGROUP = Path("/sys/fs/cgroup")
LEAST_FREE_SHARE = 0.5  # of a GPU's memory
BUSY_SHARE = 0.6  # of the cores


@dataclass(frozen=True)
class Gpu:
    """The GPU to compute on; memory in GB."""

    name: str
    capability: tuple[int, int]
    memory_gb: float
    free_gb: float
    count: int
    attention: tuple[str, ...]  # backends that attention may take


@dataclass(frozen=True)
class Machine:
    """The facts; sizes in GB. None is what could not be found out."""

    versions: dict[str, str]
    device: str
    gpu: Gpu | None
    has_nvidia: bool  # a card is there
    is_usable: bool  # torch can use a card, whether it was chosen or not
    is_hidden: bool  # by CUDA_VISIBLE_DEVICES
    driver: str | None
    driver_cuda: tuple[int, int] | None  # the newest CUDA that the driver runs
    torch_cuda: str | None  # that torch was built for; None: for CPUs only
    cudnn: int | None
    cores: float
    busy_share: float  # of the whole machine's cores, over the last minute
    memory_gb: float
    shared_gb: float | None  # free in /dev/shm
    disk_gb: float  # free under the data root
    audio_formats: tuple[str, ...]
    torchaudio_error: str | None
    weights: str
    missing_weights: str | None


@dataclass(frozen=True)
class Pitfall:
    """What is known to go wrong here, and what helps."""

    what: str
    remedy: str


def look_at_machine(
    device: torch.device, root: Path, weights: str = "", missing_weights: str | None = None
) -> Machine:
    """Collect the facts; `device` must have been set up by `pick_device`."""
    return Machine(
        versions=_find_versions(),
        device=str(device),
        gpu=_look_at_gpu(device) if device.type == "cuda" else None,
        has_nvidia=DRIVER_FILE.exists() or any(Path(name).exists() for name in NVIDIA_FILES),
        is_usable=torch.cuda.is_available(),
        is_hidden=os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
        driver=_find_driver(),
        driver_cuda=_find_driver_cuda(),
        torch_cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version() if torch.version.cuda else None,
        cores=_count_cores(),
        busy_share=os.getloadavg()[0] / (os.cpu_count() or 1),
        memory_gb=_measure_memory() / GIGABYTE,
        shared_gb=_measure_shared(),
        disk_gb=free_bytes(root) / GIGABYTE,
        audio_formats=tuple(name for name in AUDIO_FORMATS if name in soundfile.available_formats()),
        torchaudio_error=_try_torchaudio(),
        weights=weights,
        missing_weights=missing_weights,
    )


def find_pitfalls(machine: Machine) -> list[Pitfall]:
    """Name each known cause of trouble that a machine has."""
    pitfalls = []
    if machine.has_nvidia and not machine.is_usable:
        pitfalls.append(_explain_unused_gpu(machine))
    if machine.gpu is not None:
        pitfalls += _find_gpu_pitfalls(machine.gpu)
    if machine.torchaudio_error is not None:
        pitfalls.append(
            Pitfall(
                f"torchaudio does not load ({machine.torchaudio_error}), so only 16 kHz audio can be read",
                f"install torch and torchaudio of one version, both for the same CUDA "
                f"(torch here: {machine.versions.get('torch')}); requirements.txt pins them",
            )
        )
    if machine.shared_gb is not None and machine.shared_gb * GIGABYTE < MIN_SHARED_BYTES:
        pitfalls.append(
            Pitfall(
                f"{SHARED_MEMORY} has {1000 * machine.shared_gb:.0f} MB free, too little for decoding "
                "workers: audio takes a way that is three times as slow",
                "docker run --shm-size=1g (or --ipc=host)",
            )
        )
    if machine.busy_share > BUSY_SHARE:
        what = f"other processes want {machine.busy_share:.0%} of the cores: rates come out too low"
        pitfalls.append(Pitfall(what, "end them, and check again"))
    if "FLAC" not in machine.audio_formats:
        pitfalls.append(
            Pitfall("libsndfile was built without FLAC", "pip install --force-reinstall soundfile")
        )
    if machine.missing_weights is not None:
        pitfalls.append(
            Pitfall("WavLM's weights are not at hand, so random ones are checked", machine.missing_weights)
        )
    return pitfalls


def describe(machine: Machine) -> list[tuple[str, str]]:
    """Return the facts as lines of a table: what, and what it is."""
    gpu = machine.gpu
    rows = [("versions", ", ".join(f"{name} {number}" for name, number in machine.versions.items()))]
    if gpu is None:
        rows.append(("device", machine.device))
    else:
        major, minor = gpu.capability
        rows.append(
            (
                "device",
                f"{gpu.name}, {gpu.memory_gb:.1f} GB ({gpu.free_gb:.1f} free), compute capability "
                f"{major}.{minor}" + (f", one of {gpu.count}" if gpu.count > 1 else ""),
            )
        )
        rows.append(("attention", ", ".join(gpu.attention)))
    if machine.has_nvidia or gpu is not None:
        cuda = "unknown" if machine.driver_cuda is None else "{}.{}".format(*machine.driver_cuda)
        rows.append(("driver", f"{machine.driver or 'unknown'}, runs CUDA up to {cuda}"))
    built = f"CUDA {machine.torch_cuda}, cuDNN {machine.cudnn}" if machine.torch_cuda else "CPUs only"
    rows.append(("torch is for", built))
    shared = "" if machine.shared_gb is None else f", {machine.shared_gb:.1f} GB free in {SHARED_MEMORY}"
    rows.append(("CPU", f"{machine.cores:g} cores, {machine.memory_gb:.1f} GB of memory{shared}"))
    rows.append(("disk", f"{machine.disk_gb:.1f} GB free under the data root"))
    rows.append(
        ("audio", f"libsndfile {soundfile.__libsndfile_version__}: {', '.join(machine.audio_formats)}")
    )
    rows.append(("WavLM", machine.weights))
    return rows


def to_dict(machine: Machine) -> dict[str, Any]:
    """Return the facts as JSON values."""
    return asdict(machine)


def _explain_unused_gpu(machine: Machine) -> Pitfall:
    if machine.is_hidden:
        return Pitfall("CUDA_VISIBLE_DEVICES hides this machine's GPU", "unset CUDA_VISIBLE_DEVICES")
    if machine.torch_cuda is None:
        return Pitfall(
            "there is an NVIDIA GPU, and this torch is for CPUs only",
            "install the pinned torch and torchaudio from PyPI: pip install -r requirements.txt",
        )
    needed = tuple(int(part) for part in machine.torch_cuda.split(".")[:2])
    if machine.driver_cuda is not None and machine.driver_cuda[0] < needed[0]:
        return Pitfall(
            "the NVIDIA driver runs CUDA up to {}.{}, and this torch needs {}".format(
                *machine.driver_cuda, machine.torch_cuda
            ),
            "take a machine with a newer driver, or install a torch 2.11 for an older CUDA "
            "(pip install torch==2.11.* torchaudio==2.11.* --index-url https://download.pytorch.org/whl/cu126)",
        )
    return Pitfall(
        "there is an NVIDIA GPU that torch does not use",
        "if it was not turned off with --device cpu: see that nvidia-smi works here "
        "(in a container, docker run --gpus all)",
    )


def _find_gpu_pitfalls(gpu: Gpu) -> list[Pitfall]:
    pitfalls = []
    if gpu.capability < BF16_CAPABILITY:
        pitfalls.append(
            Pitfall(
                f"{gpu.name} has no bfloat16: training runs in float16, with scaled losses",
                "nothing needs doing; a card from Ampere on (RTX 30, A100) trains faster",
            )
        )
    if gpu.free_gb < LEAST_FREE_SHARE * gpu.memory_gb:
        pitfalls.append(
            Pitfall(
                f"another process holds {gpu.memory_gb - gpu.free_gb:.1f} GB of the GPU's memory",
                "nvidia-smi names it; end it, or choose another card with --device cuda:N",
            )
        )
    return pitfalls


def _find_versions() -> dict[str, str]:
    versions = {"vox": vox.__version__, "Python": platform.python_version()}
    return versions | {name: version(name) for name in PACKAGES}


def _look_at_gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    backends = torch.backends.cuda
    enabled = {
        "flash": backends.flash_sdp_enabled(),
        "memory-efficient": backends.mem_efficient_sdp_enabled(),
        "cuDNN": backends.cudnn_sdp_enabled(),
        "math": backends.math_sdp_enabled(),
    }
    return Gpu(
        name=properties.name,
        capability=(properties.major, properties.minor),
        memory_gb=total / GIGABYTE,
        free_gb=free / GIGABYTE,
        count=torch.cuda.device_count(),
        attention=tuple(name for name, is_on in enabled.items() if is_on),
    )


def _find_driver() -> str | None:
    try:
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", DRIVER_FILE.read_text())
    except OSError:
        return None
    return found.group() if found else None


def _find_driver_cuda() -> tuple[int, int] | None:
    """Ask the driver itself: torch does not report a driver that is too old for it."""
    number = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):  # no driver
        return None
    return (number.value // 1000, number.value % 1000 // 10) if number.value else None


def _count_cores() -> float:
    """Count the cores that this process may use: fewer than the machine's in a container."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no limit: "max"
        return cores


def _measure_memory() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int((CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):
        return memory


def _measure_shared() -> float | None:
    try:
        return shutil.disk_usage(SHARED_MEMORY).free / GIGABYTE
    except OSError:
        return None


def _try_torchaudio() -> str | None:
    """Say why torchaudio does not load, or None if it does."""
    try:
        importlib.import_module("torchaudio.functional")
    except Exception as error:  # it raises RuntimeError for a torch of another CUDA, OSError for its library
        return " ".join(str(error).split())[:200]
    return None
