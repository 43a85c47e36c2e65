"""The experiments, each named after the decision that it backs (docs/decisions): what was chosen against what was not.

`python -m rayfold.benchmarks.experiments.adr_0008_a_socket_beside_ray`, for example, runs one in the current folder.
"""
