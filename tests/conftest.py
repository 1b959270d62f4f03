"""One thread for every test: threads of small kernels only wait for each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
