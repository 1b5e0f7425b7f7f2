"""The benchmark: our handlers and containerd's own shim, interleaved in one run (`make bench`, docs/benchmarks.md)."""
