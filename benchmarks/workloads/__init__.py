"""What the benchmarks make a system do: domains, distributions of keys, and the plain program to compare with."""
