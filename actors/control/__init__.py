"""The control plane of a system on a cluster: places actors, watches them, moves partitions, deploys code."""
