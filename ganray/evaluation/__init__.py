"""Comparing generated images with reference images, to measure mode collapse.

``evaluate`` is the public interface; it is imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ganray.evaluation.suite import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    if name != "evaluate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ganray.evaluation.suite import evaluate

    return evaluate
