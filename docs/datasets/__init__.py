"""What is known of each data set as it is published, shipped inside the package as vlp_bench.datasets."""
