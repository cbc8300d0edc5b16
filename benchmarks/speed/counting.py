"""What a step sets in motion, as torch's profiler sees it."""

from __future__ import annotations

from itertools import accumulate

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.timing import Work

# Calls of the runtime that put a kernel, or a graph of them, on a stream.
LAUNCHES = ("cudaLaunchKernel", "cudaGraphLaunch", "cuLaunchKernel", "cudaLaunchCooperativeKernel")


def counts(work: Work, device: str) -> dict[str, int]:
    """Profiles one step, and returns how many of each there were.

    ``ops``: operations of torch, those within others too. ``launches``: kernels and graphs launched
    on a GPU. ``allocations``: blocks taken from torch's allocators. ``peak_bytes``: how far the
    memory in use rose above where it was before. What an extension does on its own is in none.
    """
    if work.prepare is not None:
        work.prepare()
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=True) as profiled:
        work.step()
    # The parsed events cost a hundred times as much as the raw ones.
    events = profiled.profiler.kineto_results.events()
    calls = [event.name() for event in events if event.device_type() == DeviceType.CPU]
    memory = [event.nbytes() for event in events if event.name() == "[memory]"]
    found = {
        "ops": sum("::" in name for name in calls),
        "allocations": sum(num_bytes > 0 for num_bytes in memory),
        "peak_bytes": max(accumulate(memory, initial=0)),
    }
    if device == "cuda":
        found["launches"] = sum(name.startswith(LAUNCHES) for name in calls)
    return found
