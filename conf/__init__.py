"""The configuration tree, shipped inside the package as vlp_bench.conf."""
