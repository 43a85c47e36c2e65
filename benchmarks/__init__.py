"""What proves it: the demo on real flights, and the benchmark suites."""
