"""The write process: one actor per partition, which orders, decides, appends and broadcasts."""
