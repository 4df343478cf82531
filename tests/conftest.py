"""For all tests: shapes are checked at every call, and one thread is enough."""

from jaxtyping import install_import_hook

CHECKED = ["vlp_bench.types", "vlp_bench.losses", "vlp_bench.encoders", "vlp_bench.methods"]
# Before anything imports these packages.
install_import_hook(CHECKED, "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
