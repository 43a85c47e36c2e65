"""Ray, and the machines and processes of a cluster. It knows nothing of stores, partitions or projections."""
