"""The set of rotations and translations."""

from __future__ import annotations

import os
import subprocess
import sys

DIGEST = """
import hashlib, torch
from bench.threats.spatial import RotationTranslation
x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
adv = 2 * torch.rand(64, 3, generator=torch.Generator().manual_seed(1)) - 1
images = RotationTranslation().apply(adv, x)
print(hashlib.sha256(images.numpy().tobytes()).hexdigest())
"""


def test_an_image_is_the_same_to_the_bit_on_other_processor_classes() -> None:
    found = set()
    for capability in ("default", "avx2", ""):
        environment = os.environ | ({"ATEN_CPU_CAPABILITY": capability} if capability else {})
        command = [sys.executable, "-c", DIGEST]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout.strip())
    assert len(found) == 1
