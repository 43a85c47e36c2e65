"""One running system, put together and taken apart: on this machine, on a cluster, or another program's."""
