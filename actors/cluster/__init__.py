"""Ray, and the machines and processes of a cluster. It is independent of stores, partitions and projections."""
