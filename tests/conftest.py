"""For all tests: shapes are checked at every call, and one thread is enough."""

import sys

import absl.logging
from jaxtyping import install_import_hook

CHECKED = ["vlp_bench.types", "vlp_bench.losses", "vlp_bench.encoders", "vlp_bench.methods"]
# Before anything imports these packages.
install_import_hook(CHECKED, "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)

# Hydra closes every log handler. That of absl (which rouge-score brings) would close what stderr was when absl was
# imported: pytest's own, where a test captures the output.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__
