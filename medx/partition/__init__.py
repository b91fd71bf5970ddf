"""Partitions: how the records of a data set are dealt to the hospitals of a study."""

from medx.partition.base import Partition, partition_table

__all__ = ["Partition", "partition_table"]
