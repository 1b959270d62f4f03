"""Step b, target T17: attacks beside peers, by arithmetic, with CUDA graphs and without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bench.core.cells import Numeric
from bench.core.errors import UnavailableError
from bench.engine.fast_forms import CudaGraphModel, has_bfloat16
from tests.benchmarks import our_runs, peer_attacks
from tests.benchmarks.cases import Case
from tests.benchmarks.device_steps.models import case_on, wide_case
from tests.benchmarks.device_steps.sizes import Size
from tests.benchmarks.device_steps.step import Step
from tests.benchmarks.device_steps.timing import timed
from tests.benchmarks.our_runs import STANDARD, Runner, RunOptions, cascade, ours
from tests.benchmarks.peer_attacks import Peer, peer

SUITE_SECONDS = 60.0  # about the standard suite of a peer on a device, before it is measured
GRAPHS = "CUDA graphs"


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of a run."""

    name: str
    numeric: Numeric
    tf32: bool = False


FLOAT32 = Arithmetic("float32", Numeric.FAST)
TF32 = Arithmetic("TF32", Numeric.FAST, tf32=True)
BFLOAT16 = Arithmetic("bfloat16", Numeric.BFLOAT16)
ARITHMETICS = (FLOAT32, TF32, BFLOAT16)


def run(step: Step) -> None:
    """Measure in order of worth: PGD, then APGD-CE, the wide network, the standard suite."""
    size = step.size
    for name, count in (
        ("resnet18-adv", size.resnet_examples), ("resnet18-std", size.resnet_examples),
        ("digits-adv", size.digits_examples),
    ):  # fmt: skip
        case = case_on(name, count, size, step.device)
        pgd(step, case)
    networks = ("resnet18-adv", "resnet18-std")
    for name in networks:
        apgd(step, case_on(name, size.resnet_examples, size, step.device))
    wide(step)
    for name in networks:
        suite(step, case_on(name, size.suite_examples, size, step.device))


def pgd(step: Step, case: Case) -> None:
    """PGD beside torchattacks, in each arithmetic, with CUDA graphs and without."""
    what, size = f"PGD-{step.size.pgd_steps}", step.size
    attack = peer("torchattacks", torchattacks_pgd(size.pgd_steps))
    reference = peer_rows(step, case, what, "torchattacks", attack, (FLOAT32, TF32))
    for arithmetic in ARITHMETICS:
        for graphs in (True, False):
            our_row(step, case, what, "pgd", arithmetic, graphs, reference, steps=size.pgd_steps)


def apgd(step: Step, case: Case) -> None:
    """APGD-CE beside pyautoattack."""
    what, steps = f"APGD-CE-{step.size.apgd_steps}", step.size.apgd_steps
    attack = peer("pyautoattack", pyautoattack_apgd(steps))
    reference = peer_rows(step, case, what, "pyautoattack", attack, (FLOAT32,))
    for arithmetic in (FLOAT32, BFLOAT16):
        graphs = has_graphs(case, arithmetic)
        our_row(step, case, what, "apgd-ce", arithmetic, graphs, reference, steps=steps)


def wide(step: Step) -> None:
    """PGD alone on a WideResNet with random weights; no example breaks."""
    case, what = wide_case(step.size, step.device), f"PGD-{step.size.pgd_steps}"
    for arithmetic in ARITHMETICS:
        for graphs in (True, False):
            our_row(step, case, what, "pgd", arithmetic, graphs, None, steps=step.size.pgd_steps)


def suite(step: Step, case: Case) -> None:
    """The standard suite as a cascade beside pyautoattack's."""
    names, parts = (STANDARD, ()) if step.size.suite else (STANDARD[:1], ("apgd-ce",))
    what = "standard suite" if step.size.suite else "APGD-CE of the standard suite"
    seconds = SUITE_SECONDS if step.size.suite else 1.0
    if not step.fits(f"{what}, {case.name}", seconds):
        return
    attack = peer("pyautoattack", peer_attacks.autoattack(*parts))
    reference = peer_rows(step, case, what, "pyautoattack", attack, (FLOAT32,))
    for arithmetic in (FLOAT32, BFLOAT16):
        if usable(step, case, arithmetic, graphs=False):
            options = run_options(step.size, arithmetic, graphs=True)
            row(step, case, what, "ours", arithmetic, cascade(names, options), reference,
                graphs=has_graphs(case, arithmetic))  # fmt: skip


def peer_rows(
    step: Step, case: Case, what: str, library: str, runner: Runner, kinds: tuple[Arithmetic, ...]
) -> float | None:
    """Measure a peer in each arithmetic; the seconds in float32, None where it is missing."""
    seconds = None
    for arithmetic in kinds:
        if arithmetic.tf32 and step.device.type != "cuda":
            continue
        try:
            found = row(step, case, what, library, arithmetic, runner, None)
        except UnavailableError as error:
            step.leave_out(f"{what}, {case.name}, {library}", str(error))
            return None
        if arithmetic is FLOAT32 and found:
            seconds = found["seconds"]
    return seconds


def our_row(
    step: Step, case: Case, what: str, attack: str, arithmetic: Arithmetic, graphs: bool,
    reference: float | None, **changes: Any,
) -> None:  # fmt: skip
    """Measure an attack of this project, where the device has what it needs."""
    if not usable(step, case, arithmetic, graphs=graphs):
        return
    runner = ours(attack, run_options(step.size, arithmetic, graphs=graphs), **changes)
    applied = graphs and has_graphs(case, arithmetic)
    if arithmetic.tf32:
        forget_graphs(case, arithmetic)
    row(step, case, what, "ours", arithmetic, runner, reference, graphs=applied)
    if arithmetic.tf32:
        forget_graphs(case, arithmetic)


def row(
    step: Step, case: Case, what: str, side: str, arithmetic: Arithmetic, runner: Runner,
    reference: float | None, *, graphs: bool = False,
) -> dict[str, Any] | None:  # fmt: skip
    """Measure one line if it fits; `reference`: a peer's seconds on the same examples."""
    label = f"{what}, {case.name}, {side}, {arithmetic.name}" + (", graphs" if graphs else "")
    longest = max((line["spent"] for line in rows_of(step, what, case.name)), default=0.0)
    if not step.fits(label, longest):
        return None
    found = timed(case, runner, allow_tf32=arithmetic.tf32)
    ratio = reference / found["seconds"] if reference else None
    step.add(attack=what, model=case.name, side=side, arithmetic=arithmetic.name, graphs=graphs,
             times_faster=ratio, **found)  # fmt: skip
    return found


def rows_of(step: Step, what: str, model: str) -> Iterator[dict[str, Any]]:
    """The measured lines of an attack on a model."""
    lines: list[dict[str, Any]] = step.report.step(step.key)["rows"]
    return (line for line in lines if (line["attack"], line["model"]) == (what, model))


def usable(step: Step, case: Case, arithmetic: Arithmetic, *, graphs: bool) -> bool:
    """Whether the device has an arithmetic and CUDA graphs; else the reason is recorded once."""
    reason, what = "", arithmetic.name
    if arithmetic.tf32 and step.device.type != "cuda":
        reason = "not available: TF32 is an arithmetic of CUDA devices"
    elif arithmetic is BFLOAT16 and not has_bfloat16(step.device):
        reason = "not available: this device has no bfloat16 instructions"
    elif graphs and step.device.type != "cuda":
        # Off the device the same module runs without graphs, in the line without them.
        what, reason = GRAPHS, "not available: CUDA graphs need a CUDA device"
    elif graphs and not has_graphs(case, arithmetic):
        notes = our_runs.fast_model(case, arithmetic.numeric).notes
        what, reason = f"{GRAPHS}, {case.name}, {arithmetic.name}", " ".join(notes)
    entry = {"what": what, "reason": reason}
    if reason and entry not in step.report.step(step.key)["left_out"]:
        step.leave_out(**entry)
    return not reason


def has_graphs(case: Case, arithmetic: Arithmetic) -> bool:
    """Whether the form of the model passed its self-test with CUDA graphs."""
    return GRAPHS in our_runs.fast_model(case, arithmetic.numeric).applied


def forget_graphs(case: Case, arithmetic: Arithmetic) -> None:
    """Drop recorded CUDA graphs: one repeats the arithmetic in which it was recorded."""
    module = our_runs.fast_model(case, arithmetic.numeric).module
    if isinstance(module, CudaGraphModel):
        module.graphs.clear()


def run_options(size: Size, arithmetic: Arithmetic, *, graphs: bool) -> RunOptions:
    """The options of a run; survivors are not audited, as the peers audit nothing."""
    return RunOptions(arithmetic.numeric, audit=False, slots=size.slots, graphs=graphs)


def torchattacks_pgd(steps: int) -> Peer:
    """PGD of torchattacks with steps of a tenth of the radius."""

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        import torchattacks

        found: Tensor = torchattacks.PGD(model, eps=eps, alpha=eps / 10, steps=steps)(x, y)
        return found

    return call


def pyautoattack_apgd(steps: int) -> Peer:
    """APGD-CE of pyautoattack."""

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        from pyautoattack.autopgd_base import APGDAttack

        attack = APGDAttack(model, n_iter=steps, eps=eps, seed=seed, loss="ce", device=x.device)
        return peer_attacks.images_of(attack.perturb(x, y))

    return call
