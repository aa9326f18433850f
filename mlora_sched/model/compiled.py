"""The row-wise pieces of a base through torch.compile: its norms, and act(gate) · up of its gated FFNs.

Sites and adapters stay as they are: they work in place, segment by segment, under autograd functions of our own, which
a graph would break on. Shapes are dynamic, so that every pack length runs the same code: one graph each for a forward
that needs a gradient, for one that needs none of its input, and for an evaluation. All of them are made here, before
the first job comes, and must agree in their bits. Whether bits change with length and place is for the probe to say.

Not here: attention, the head, rotary positions.

Legend: T rows of the pack.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import stat
import sysconfig
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mlora_sched.errors import BaseError
from mlora_sched.model.attention import SpanPlan
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.ffn import Gating

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_MOST_GRAPHS = 64
"""Of one function: three for each width and number of dimensions that it meets."""
_TRIAL_ROWS = 512


def check_compiler(device: torch.device) -> None:
    """Refuse where torch.compile has not got what it needs.

    Raises:
        BaseError: there is no C++ compiler, no Python header, or, for a GPU, no Triton.
    """
    compiler, *_ = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    lacks = None
    if shutil.which(compiler) is None:
        lacks = f"there is no C++ compiler {compiler}; install it (apt install g++), name another in the variable CXX"
    elif not header.exists():
        lacks = f"{header} is not there; install Python's headers (apt install python3-dev)"
    elif device.type == "cuda" and importlib.util.find_spec("triton") is None:
        lacks = "Triton is not installed; install torch's own build for this GPU, which brings it"
    if lacks is not None:
        raise BaseError(f"--compile: {lacks}, or serve without --compile")


def compile_rows(base: FrozenBase) -> None:
    """Compile the row-wise pieces of the base, in place, and run each of them once.

    Raises:
        BaseError: torch.compile cannot compile a piece of this base, or finds none.
    """
    from torch._dynamo.exc import TorchDynamoException

    norms = [module for module in base.model.base_model.modules() if _is_norm(module)]
    gated = [ffn for ffn in base.ffns.values() if ffn.form.gating is not Gating.PLAIN]
    if not norms and not gated:
        raise BaseError(
            f"--compile: base {base.name} ({base.model.config.model_type}) has neither norms that torch does not "
            f"compute in one operation already, nor gated FFNs; serve it without --compile"
        )
    _settle()
    for module in norms:
        module.compile(dynamic=True, fullgraph=True)
    product = torch.compile(_product, dynamic=True, fullgraph=True)
    for ffn in gated:
        ffn.gated = product
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, about what its own tracing touches
            first_TD, *others = _try(base)
    except TorchDynamoException as error:
        reason, *_ = str(error).splitlines()
        raise BaseError(
            f"--compile: torch.compile cannot make the row-wise pieces of base {base.name} "
            f"({base.model.config.model_type}): {reason}; serve it without --compile"
        ) from error
    # which of its graphs a layer runs through depends on who else has adapters below
    if not all(torch.equal(first_TD, hidden_TD) for hidden_TD in others):
        raise BaseError(
            f"--compile: the compiled pieces of base {base.name} ({base.model.config.model_type}) round otherwise "
            f"where a gradient is wanted, so that a job's results would depend on its company; serve it without "
            f"--compile"
        )


def _product(act: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    """As a graph wants it: it finds by itself what to keep for backward."""
    product: Tensor = act(gate) * up
    return product


def _is_norm(module: nn.Module) -> bool:
    """A norm of the model's own, written as a chain of operations; torch's are one operation each."""
    kind = type(module)
    own = not kind.__module__.startswith("torch.")
    return own and "norm" in kind.__name__.lower() and next(module.children(), None) is None


def _settle() -> None:
    """Settings of torch.compile for the whole process.

    Raises:
        BaseError: its directory cannot be made.
    """
    import torch._dynamo
    import torch._inductor.config
    import torch.fx.experimental._config

    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    # A pack as long as some width of the base is a coincidence, for which there must be no code of its own.
    torch.fx.experimental._config.use_duck_shape = False
    torch._inductor.config.compile_threads = 1  # no pool of processes beside the worker
    if _CACHE_VARIABLE in os.environ:
        return
    # torch's own choice lies in /tmp under a name that anybody can take first, and its content is run
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlora_sched" / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise BaseError(
            f"--compile: {folder}, where compiled code is kept, cannot be made ({error.strerror}); name another "
            f"directory in the variable {_CACHE_VARIABLE}, or serve without --compile"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise BaseError(
            f"--compile: {folder}, whose code would be run, is not this user's alone; remove it, or name another "
            f"directory in the variable {_CACHE_VARIABLE}"
        )
    os.environ[_CACHE_VARIABLE] = str(folder)


def _try(base: FrozenBase) -> list[Tensor]:
    """Make every graph: an evaluation, a pass that needs no gradient of its input, and one that does, with backward.

    The first lengths that a graph sees are what its loops are laid out for, so they are those of an ordinary pack.

    Returns:
        The last hidden states (T, D) of each of them.
    """
    rows = min(_TRIAL_ROWS, base.longest)
    generator = torch.Generator().manual_seed(0)
    ids_1T = torch.randint(base.head.weight_VD.shape[0], (1, rows), generator=generator).to(base.device)
    positions_1T, spans = torch.arange(rows, device=base.device)[None], SpanPlan.of([rows], rows)
    with torch.no_grad():
        evaluated_TD = base.hidden(ids_1T, positions_1T, spans)
    frozen_TD = base.hidden(ids_1T, positions_1T, spans)
    hook = base.model.get_input_embeddings().register_forward_hook(_wants_gradient)
    try:
        hidden_TD = base.hidden(ids_1T, positions_1T, spans)
    finally:
        hook.remove()
    hidden_TD.sum().backward()
    return [evaluated_TD, frozen_TD, hidden_TD.detach()]


def _wants_gradient(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output.requires_grad_()
