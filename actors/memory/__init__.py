"""A whole system in the memory of one process, without Ray and without a disk, for the tests of applications."""
