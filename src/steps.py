"""What happens inside one optimiser step: seeds, forward, losses, backward; plain or in two passes.

The batch of a step is a list of micro-batches a rank. Every loss is a mean over the valid samples
of what it sees at once; micro-batches are weighted by their share of the step's valid samples, so
that accumulation changes memory and not the gradient. For contrast, whose loss is no sum over
samples,
`cached_gradients` gives the gradient of the whole step's batch at the memory of one micro-batch
(Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup").
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.distributed import World
from rushes.modeling.encoded import Encoded, concatenate
from rushes.modeling.objectives import Objective

Objectives = Mapping[str, tuple[float, Objective]]

_PADDING = {"masked_labels": -100}
_PIXELS = frozenset({"high", "low"})


def mixed_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and names; the same on every machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def resolve_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """Type that matrices are multiplied in, or None for float32.

    Args:
        precision: "fp32", "bf16", or "auto": bf16 where the device computes in it natively.
    """
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def _cpu_has_bf16() -> bool:
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


@dataclass
class Pass:
    """What the micro-steps of one optimiser step share.

    Attributes:
        model: a `Trainable` module.
        objectives: those of this step.
        step: optimiser step, counted from 1.
        dtype: autocast type, None for float32.
    """

    model: Any
    objectives: Objectives
    world: World
    seed: int
    step: int
    dtype: torch.dtype | None

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """A fresh context: casts of weights made without gradient must not be reused with one."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, self.dtype)

    def seed_noise(self, *where: int | str) -> None:
        """Seed the noise inside the model from (seed, step, rank, place within the step)."""
        torch.manual_seed(mixed_seed(self.seed, self.step, self.world.rank, *where))

    def encode(self, batch: Batch, micro: int) -> Encoded:
        """Run the towers; twice the same result for the same arguments."""
        self.seed_noise(micro)
        with self.autocast():
            encoded: Encoded = self.model.encode(batch)
        return encoded

    def losses(self, encoded: Encoded, batch: Batch, where: int | str) -> dict[str, Tensor]:
        """Weighted losses and reported values by name."""
        generator = torch.Generator(self.world.device)
        generator.manual_seed(mixed_seed(self.seed, self.step, self.world.rank, where, "draw"))
        named: dict[str, Tensor] = {}
        with self.autocast():
            for weight, objective in self.objectives.values():
                for name, value in objective(encoded, batch, self.world, generator).items():
                    scaled = value.float() * weight if name.endswith("_loss") else value.float()
                    named[name] = named[name] + scaled if name in named else scaled
        return named


def total_loss(named: Mapping[str, Tensor]) -> Tensor:
    """Sum of the values whose names end in `_loss`."""
    return torch.stack([value for name, value in named.items() if name.endswith("_loss")]).sum()


def accumulate(
    shared: Pass, batches: Sequence[Batch], counts: Sequence[int], config: RunConfig
) -> dict[str, Tensor]:
    """Leave the gradient of the step in `.grad`; the step's loss parts, detached.

    Args:
        batches: this rank's micro-batches.
        counts: valid samples of each micro-batch over all ranks; empty ones are skipped alike, and
            a step without any leaves no gradient.
    """
    if not sum(counts):
        return {}
    if config.train.cached_gradient and len(batches) > 1:
        return cached_gradients(shared, batches)
    parts: dict[str, Tensor] = {}
    for micro, (batch, count) in enumerate(zip(batches, counts, strict=True)):
        if count == 0:
            continue
        share = count / sum(counts)
        named = shared.losses(shared.encode(batch, micro), batch, micro)
        _backward(total_loss(named) * share)
        for name, value in named.items():
            parts[name] = parts.get(name, torch.zeros_like(value.detach())) + share * value.detach()
    return parts


def cached_gradients(shared: Pass, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The exact gradient of the losses over all micro-batches at once, in two passes.

    First all outputs of the towers without gradient; then the losses on all of them together, which
    give the gradient of each output; then each micro-batch again, with the same noise, to carry
    these gradients into the towers.
    """
    statistics = [buffer.clone() for buffer in shared.model.buffers()]
    outputs = []
    with torch.no_grad():
        for micro, batch in enumerate(batches):
            outputs.append(shared.encode(batch, micro).map(_leaf))
        for buffer, before in zip(shared.model.buffers(), statistics, strict=True):
            buffer.copy_(before)
    shared.seed_noise("objectives")
    named = shared.losses(concatenate(outputs), join_batches(batches), "objectives")
    _backward(total_loss(named))
    for micro, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
        again = shared.encode(batch, micro)
        pairs = [
            (tensor, leaf.grad)
            for tensor, leaf in zip(again.tensors(), output.tensors(), strict=True)
            if tensor.requires_grad and leaf.grad is not None
        ]
        if pairs:
            torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])
    return {name: value.detach() for name, value in named.items()}


def _leaf(tensor: Tensor) -> Tensor:
    with torch.enable_grad():
        return tensor.detach().requires_grad_(True)


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Micro-batches as one batch without pixels, which no objective reads.

    Texts are padded to the longest. Ragged modalities are left out for the same reason as pixels.
    """
    first = batches[0]
    joined: dict[str, Any] = {"high": None, "low": None, "modalities": {}}
    for entry in fields(Batch):
        values = [getattr(batch, entry.name) for batch in batches]
        if isinstance(values[0], Tensor) and entry.name not in _PIXELS:
            joined[entry.name] = _join(values, _PADDING.get(entry.name, 0))
    joined["ids"] = tuple(name for batch in batches for name in batch.ids)
    return replace(first, **joined)


def _join(tensors: Sequence[Tensor], padding: int) -> Tensor:
    longest = max(tensor.shape[-1] for tensor in tensors)
    if tensors[0].ndim > 1 and any(tensor.shape[-1] != longest for tensor in tensors):
        tensors = [
            nn.functional.pad(tensor, (0, longest - tensor.shape[-1]), value=padding)
            for tensor in tensors
        ]
    return torch.cat(list(tensors))


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale gradients down to `max_norm` in all (0 or less: leave them); their norm before."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm, foreach=True)
    return norm


def agree(
    world: World, parts: Mapping[str, Tensor], grad_norm: Tensor, stop: bool
) -> tuple[dict[str, float], bool, bool]:
    """Loss parts averaged over ranks; whether all is finite everywhere; whether anyone must stop.

    One collective a step carries all three.
    """
    names = sorted(parts)
    values = torch.stack([parts[name].double() for name in names] or [torch.zeros(()).double()])
    finite = torch.isfinite(values).all() & torch.isfinite(grad_norm).to(values.device)
    flags = torch.stack([(~finite).double(), torch.tensor(float(stop)).to(values)])
    reduced = world.all_reduce_sum(torch.cat([flags, values])).tolist()
    means = {name: value / world.size for name, value in zip(names, reduced[2:], strict=False)}
    return means, reduced[0] == 0, reduced[1] > 0


def count_valid(world: World, batches: Sequence[Batch]) -> tuple[list[int], int]:
    """Valid samples of each micro-batch over all ranks, and how many are not valid in all."""
    valid = [int(batch.valid.sum()) for batch in batches]
    failed = sum(len(batch) for batch in batches) - sum(valid)
    row = torch.tensor([*valid, failed], dtype=torch.float64, device=world.device)
    counts = [int(value) for value in world.all_reduce_sum(row).tolist()]
    return counts[:-1], counts[-1]


def measured(function: Callable[[], Any]) -> int:
    """Floating-point operations of a call (matrix products, convolutions, attention)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
