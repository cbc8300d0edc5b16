"""torch.cuda on the simulated backend: what torch._C lacks in a CPU build is given to it.

torch.cuda's own Python code runs on top, so that what it checks is checked here, too. Only the
classes that a CPU build of torch leaves without a base are replaced: Stream and Event, which are
torch's generic ones here, and CUDAGraph.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

GIGABYTE = 1 << 30
FREE_MEMORY = 8 * GIGABYTE  # tests that need more are left out, as on a small GPU


def load(name: str, path: Path) -> ModuleType:
    """An extension module from a file."""
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class EngineFinder(importlib.abc.MetaPathFinder):
    """Gives lrfast the engine that launches into the simulator."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name != "lrfast._C":
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, str(self._path))
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


def install(backend_path: Path, engine_path: Path) -> ModuleType:
    """Makes two simulated GPUs of this process's torch; to be called before torch is imported.

    Returns:
        The backend: ``seed``, ``drain``, ``waits``, ``launches``, ``fingerprint``.
    """
    if "torch" in sys.modules:
        raise RuntimeError("the simulated GPU has to be installed before torch is imported")
    backend = load("_backend", backend_path)
    sys.meta_path.insert(0, EngineFinder(engine_path))
    import torch

    torch._C._cuda_init = lambda: None
    torch._C._cuda_isInBadFork = lambda: False
    torch.cuda._is_in_bad_fork = lambda: False
    give_functions(torch, backend)
    replace_classes(torch, backend)
    torch.cuda.default_generators = backend.default_generators()
    torch.cuda._is_compiled = lambda: True
    torch.backends.cuda.is_built = lambda: True
    torch.UntypedStorage.__new__ = staticmethod(storage_maker(torch))
    torch.UntypedStorage.__init__ = lambda self, *args, **options: None
    torch.profiler.profile = profile_class(torch, backend)
    # Autograd's own thread per GPU frees tensors while this one goes on, at a time of no seed's.
    torch.autograd.set_multithreading_enabled(False)
    return backend


def give_functions(torch: Any, backend: ModuleType) -> None:
    """What torch._C has in a CUDA build, and the names that torch.cuda has taken from there."""
    given = backend.torch_c
    for name in dir(given):
        if name.startswith("_cuda"):
            setattr(torch._C, name, getattr(given, name))
    torch._C._graph_pool_handle = given._graph_pool_handle
    torch._C._host_emptyCache = lambda: None
    torch._C._cuda_emptyCache = lambda: None
    torch._C._cuda_getArchFlags = lambda: None
    torch._C._cuda_getCurrentRawStream = lambda device: given._cuda_getCurrentStream(device)[0]
    torch._C._cuda_getAllocatorBackend = lambda: "native"

    def memory_stats(device: int) -> dict[str, Any]:
        sizes = {"allocated": backend.allocated(device), "reserved": backend.reserved(device)}
        return {f"{kind}_bytes": {"all": {"current": size}} for kind, size in sizes.items()}

    torch._C._cuda_memoryStats = memory_stats
    cuda = torch.cuda
    cuda._exchange_device = given._cuda_exchangeDevice
    cuda._maybe_exchange_device = given._cuda_maybeExchangeDevice
    cuda.graphs._cuda_isCurrentStreamCapturing = given._cuda_isCurrentStreamCapturing
    cuda.graphs._graph_pool_handle = given._graph_pool_handle
    cuda.device_count = given._cuda_getDeviceCount
    cuda.is_bf16_supported = lambda including_emulation=True: True
    cuda._get_device_properties = lambda device: SimpleNamespace(
        name="simulated GPU",
        major=9,
        minor=0,
        total_memory=FREE_MEMORY,
        multi_processor_count=5,
        warp_size=32,
        max_threads_per_multi_processor=2048,
    )
    cuda._cudart = SimpleNamespace(cudaMemGetInfo=lambda device: (FREE_MEMORY, FREE_MEMORY))


def replace_classes(torch: Any, backend: ModuleType) -> None:
    """Stream, Event and CUDAGraph, with torch.cuda's signatures."""

    class Stream(torch.Stream):
        def __new__(cls, device: Any = None, priority: int = 0, **data: Any) -> Any:
            if data:
                return super().__new__(cls, **data)
            index = torch.cuda._utils._get_device_index(device, optional=True)
            return super().__new__(cls, device=torch.device("cuda", index), priority=priority)

        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        @property
        def cuda_stream(self) -> int:
            return self.stream_id

        def record_event(self, event: Any = None) -> Any:
            event = Event() if event is None else event
            event.record(self)
            return event

        def wait_stream(self, stream: Any) -> None:
            self.wait_event(stream.record_event())

    class Event(torch.Event):
        def __new__(
            cls,
            enable_timing: bool = False,
            blocking: bool = False,
            interprocess: bool = False,
            external: bool = False,
        ) -> Any:
            return super().__new__(cls, device="cuda", enable_timing=enable_timing)

        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def record(self, stream: Any = None) -> None:
            super().record(torch.cuda.current_stream() if stream is None else stream)

        def wait(self, stream: Any = None) -> None:
            super().wait(torch.cuda.current_stream() if stream is None else stream)

        def elapsed_time(self, end_event: Any) -> float:
            if not (self.query() and end_event.query()):
                raise RuntimeError("both events must have been reached for the time between them")
            return 0.01  # no clock runs here

    class CUDAGraph(backend.torch_c._CUDAGraph):
        def __init__(self, keep_graph: bool = False) -> None:
            super().__init__(keep_graph)

        def capture_begin(
            self,
            pool: Any = None,
            capture_error_mode: str = "global",
            check_input_liveness: bool = False,
        ) -> None:
            super().capture_begin(pool, capture_error_mode)

    for made in (Stream, Event, CUDAGraph):
        made.__module__, made.__qualname__ = "torch.cuda", made.__name__
        setattr(torch.cuda, made.__name__, made)
    torch.cuda.streams.Stream, torch.cuda.streams.Event = Stream, Event
    torch.cuda.graphs.CUDAGraph = CUDAGraph


def storage_maker(torch: Any) -> Any:
    """``UntypedStorage.__new__``, which makes none on a GPU in a CPU build."""
    given = torch.UntypedStorage.__new__

    def make(cls: type, *args: Any, device: Any = None, **options: Any) -> Any:
        if device is None:
            return given(cls, *args, **options)
        if torch.device(device).type != "cuda":
            return given(cls, *args, device=device, **options)
        size = args[0] if args else 0
        return torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()

    return make


class Launched(NamedTuple):
    """What a profile says of a launch: enough for names in order."""

    device_type: Any
    name: str
    time_range: Any


def profile_class(torch: Any, backend: ModuleType) -> type:
    """``torch.profiler.profile`` where it is asked for what the GPU does."""
    given = torch.profiler.profile

    class Profile:
        def __new__(cls, *args: Any, activities: Any = None, **options: Any) -> Any:
            if activities and torch.profiler.ProfilerActivity.CUDA in activities:
                return super().__new__(cls)
            return given(*args, activities=activities, **options)

        def __init__(self, *args: Any, **options: Any) -> None:
            self._names: list[str] = []

        def __enter__(self) -> Any:
            backend.start_profile()
            return self

        def __exit__(self, *error: Any) -> None:
            self._names = backend.end_profile()

        def events(self) -> list[Launched]:
            kind = torch.autograd.DeviceType.CUDA
            return [
                Launched(kind, name, SimpleNamespace(start=number))
                for number, name in enumerate(self._names)
            ]

    return Profile
