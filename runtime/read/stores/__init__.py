"""Where the read model of a projection lives: in memory, in LMDB, in DuckDB, or in a store of the user's own."""
