"""The one exception for users' mistakes; and the name of a problem that has none of its own."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

CPU_ALLOCATOR = "DefaultCPUAllocator: "
"""What stands in torch's message before its reason, which depends on the platform."""
GPU_SHORTAGES = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""Words of errors that have no type of their own: the driver, or a library beside torch, got no memory."""


class SamunetError(ValueError):
    """A mistake a user can mend. The message says what is wrong, where, why, and what to do.

    The command line prints the message without a traceback and exits with 2.
    """


class NoSpaceError(SamunetError):
    """The disk is full: what is worked on is not at fault, and nothing else would fare better."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> SamunetError:
    """Build the error for a name that does not exist: it lists the closest and all known names."""
    names = sorted(set(known))
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return SamunetError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


def lacks_main_memory(problem: BaseException) -> bool:
    """Whether main memory did not suffice; of a tensor torch says so in words only."""
    if isinstance(problem, RuntimeError):
        return CPU_ALLOCATOR in str(problem)
    return isinstance(problem, MemoryError)


def lacks_gpu_memory(problem: BaseException) -> bool:
    """Whether the memory of a GPU did not suffice; only torch's own allocator has a type for that."""
    if type(problem).__name__ == "OutOfMemoryError":
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in GPU_SHORTAGES)
