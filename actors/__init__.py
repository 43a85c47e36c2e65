"""Where it runs: the Ray actors, the client's router and the command line. The only folder that imports ray."""
