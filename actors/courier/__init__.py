"""The courier of a partition: has what was decided there carried out, in a thread of the partition's actor."""
