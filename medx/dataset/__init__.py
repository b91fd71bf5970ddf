"""Data sets: medical images with labels, verified before use."""

from medx.dataset.base import Dataset, DataSplits, InputSpec, Split, Task, content_hash

__all__ = ["DataSplits", "Dataset", "InputSpec", "Split", "Task", "content_hash"]
