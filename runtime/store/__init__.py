"""A store on disk: its directory, lock and partitions, on one node or spread over several."""
