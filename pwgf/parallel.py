"""Several processes that share the samples of one run: sums over them, and agreement among them.

Every process (rank) does the same computation, draws the same random numbers and holds the same θ; only the samples are
divided among them, a contiguous part to each. Means over samples are summed over the ranks, and every number that
decides a branch is the same on all of them, so that they never diverge.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import errors
from .errors import ConfigError, ParallelError, PWGFError, StorageError

_TIMEOUT = 600.0  # seconds to wait for another process; one that has died is noticed at once


@dataclass(frozen=True)
class Group:
    """The processes of a run: this is number `rank`, from 0, of `size`. With one process every method is the identity.

    `device` is where numbers are exchanged, apart from the tensors of the computation.

    Raises:
        ParallelError: from every method that exchanges something, when another process has died or does not answer.

    Example:
        >>> Group(rank=1, size=3).share(10), Group().share(10)
        (slice(3, 6, None), slice(0, 10, None))
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def share(self, n: int) -> slice:
        """The rows of n that are this rank's: contiguous, in rank order, equal in number up to one."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def slice_rows(self, rows: Tensor) -> Tensor:
        """This rank's part of rows (n, …) that all ranks hold."""
        return rows[self.share(len(rows))] if self.size > 1 else rows

    def for_samples(self, n: int) -> Group:
        """This group, or a single process where there is not a sample for every rank."""
        return self if n >= self.size else ALONE

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, the same bits on all of them; detached."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        with self._telling():
            dist.all_reduce(total)
        return total

    def norm(self, norms: Tensor) -> Tensor:
        """Euclidean norms of arrays whose rows are divided among the ranks, from those of this rank's rows."""
        return norms if self.size == 1 else self.sum(norms.square()).sqrt()

    def greatest(self, *numbers: float) -> tuple[float, ...]:
        """The greatest over the ranks, of each number separately."""
        if self.size == 1:
            return numbers
        found = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        with self._telling():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return tuple(found.tolist())

    def any(self, flag: bool | Tensor) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.greatest(float(bool(flag)))[0])

    def from_first(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, on all ranks; shapes and dtypes must agree."""
        if self.size == 1:
            return tensor
        found = tensor.detach().clone(memory_format=torch.contiguous_format)
        with self._telling():
            dist.broadcast(found, src=0)
        return found

    def numbers_from_first(self, *numbers: float) -> tuple[float, ...]:
        """Rank 0's numbers, on all ranks."""
        if self.size == 1:
            return numbers
        return tuple(self.from_first(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist())

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all ranks one after another, in rank order; detached. Ranks may differ in how many they have."""
        if self.size == 1:
            return rows
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(rows)
        ends = self.sum(lengths).cumsum(0).tolist()
        plain = torch.uint8 if rows.dtype == torch.bool else rows.dtype
        found = torch.zeros(ends[-1], *rows.shape[1:], dtype=plain, device=rows.device)
        found[ends[self.rank] - len(rows) : ends[self.rank]] = rows.detach()
        return self.sum(found).to(rows.dtype)

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        self.greatest(0.0)  # works on every backend

    def agree(self, settings: Mapping[str, Any], call: str) -> None:
        """Compares settings (JSON values by name) with those of the other ranks.

        Raises:
            ConfigError: on all ranks, with the names that differ and both values.
        """
        if self.size == 1:
            return
        found = [json.loads(text) for text in self._texts(json.dumps(settings, default=str))]
        for rank, other in enumerate(found):
            differ = [
                f"{key}: {found[0].get(key)!r:.60} in process 0, {other.get(key)!r:.60} in process {rank}"
                for key in sorted({*found[0], *other})
                if found[0].get(key) != other.get(key)
            ]
            if differ:
                raise ConfigError(
                    f"{call}: the {self.size} processes of this run must have the same settings; they differ in "
                    f"{'; '.join(differ[:8])}. Start all with the same script and arguments, or set PWGF_PARALLEL=0 to "
                    "let each run on its own."
                )

    def check_own_device(self, device: str, call: str) -> None:
        """Whether each rank computes on a device of its own, unless that is a CPU.

        Raises:
            ConfigError: on all ranks, where two have the same.
        """
        if self.size == 1 or device == "cpu":
            return
        found = self._texts(f"{socket.gethostname()} {_identity(device)}")
        for rank, name in enumerate(found):
            first = found.index(name)
            if first < rank:
                raise ConfigError(
                    f"{call}: each of the {self.size} processes of this run needs a device of its own; processes "
                    f"{first} and {rank} both compute on {name.partition(' ')[2]}. Give device='cuda', which is then "
                    "the GPU of each process's number, and start no more processes than there are GPUs: torchrun "
                    "--nproc-per-node R script.py."
                )

    def on_first(self, action: Callable[[], object]) -> None:
        """Rank 0 acts while the others wait; an error of this package that it raises is raised on all ranks."""
        failure = ""
        if self.rank == 0:
            try:
                action()
            except PWGFError as error:
                failure = f"{type(error).__name__}:{error}"
                self._texts(failure)
                raise
        kind, _, message = self._texts(failure)[0].partition(":")
        if kind:
            raise getattr(errors, kind, StorageError)(f"process 0 of {self.size}, which writes, failed: {message}")

    def _texts(self, text: str) -> list[str]:
        """The texts of all ranks, exchanged as bytes of JSON."""
        if self.size == 1:
            return [text]
        line = json.dumps(text).encode() + b"\n"  # JSON has no bare line feed
        found = self.gather_rows(torch.frombuffer(bytearray(line), dtype=torch.uint8).to(self.device))
        return [json.loads(line) for line in bytes(found.tolist()).splitlines()]

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ParallelError(
                f"process {self.rank} of {self.size} stops, because another one has stopped or did not answer for "
                f"{_timeout():g} s ({str(error).splitlines()[0]:.200}); its own message says why. Stored rows "
                "stay valid: start all of them again, with resume=True."
            ) from error


ALONE = Group()


class Shared:
    """n samples (`num_samples`, of all processes together) divided among a group; the rows `own` are this rank's.

    `weights`, (own rows,) with mean 1 over all samples, are those of each in `mean`; None where all count alike.
    """

    weights: Tensor | None = None

    def __init__(self, num_samples: int, group: Group = ALONE) -> None:
        self.num_samples = num_samples
        self.group = group
        self.own = group.share(num_samples)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values (own rows, …) over the samples of all processes, (…).

        The value is the same on all; only the part of this rank is differentiable, so that the gradient is the sum of
        the gradients of the processes.
        """
        if self.weights is not None:
            values = values * self.weights.view(-1, *(1,) * (values.ndim - 1))
        if self.group.size == 1:
            return values.mean(0)
        share = values.sum(0) / self.num_samples
        total = self.group.sum(share)
        return total + (share - share.detach()) if share.requires_grad else total

    def gather(self, values: Tensor) -> Tensor:
        """Values of all samples (n, …) from those of this rank (rows, …), which alone are differentiable."""
        if self.group.size == 1:
            return values
        every = self.group.gather_rows(values)
        if not values.requires_grad:
            return every
        return torch.cat([every[: self.own.start], values, every[self.own.stop :]])


def world() -> Group:
    """The processes started together, as by `torchrun --nproc-per-node R script.py`; a single one without such a start.

    They are found where torch.distributed is initialised, or by the variables RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT; then it is initialised here, with gloo for CPU tensors and NCCL for CUDA tensors (gloo where a process
    does not see as many GPUs as there are processes). `PWGF_PARALLEL=0` switches it off: each process runs on its own.
    `PWGF_PARALLEL_TIMEOUT` is the time in seconds after which a process that does not answer is given up (600).

    Raises:
        ParallelError: the other processes cannot be reached.
    """
    if os.environ.get("PWGF_PARALLEL") == "0" or not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if os.environ.get("WORLD_SIZE", "1") == "1" or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= {*os.environ}:
            return ALONE
        _join()
    device = "cpu" if "cpu" in str(dist.get_backend_config()) else "cuda"
    return Group(dist.get_rank(), dist.get_world_size(), device)


def _join() -> None:
    """Initialises torch.distributed; each process takes the GPU of its number on this machine."""
    backend, timeout = "gloo", timedelta(seconds=_timeout())
    if torch.cuda.is_available():
        num_gpus = torch.cuda.device_count()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % num_gpus)
        if num_gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
            backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise ParallelError(
            f"the {os.environ['WORLD_SIZE']} processes of this run could not be joined: {error}. Start them together: "
            "torchrun --nproc-per-node R script.py; or set PWGF_PARALLEL=0 to run each on its own."
        ) from error


def _identity(device: str) -> str:
    """The device as all processes of a machine name it, whichever of the GPUs each of them sees."""
    if not device.startswith("cuda"):
        return device
    index = torch.device(device).index
    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    return f"{properties.name} {getattr(properties, 'uuid', index)}"


def _timeout() -> float:
    given = os.environ.get("PWGF_PARALLEL_TIMEOUT", "")
    try:
        seconds = float(given or _TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"PWGF_PARALLEL_TIMEOUT must be a positive number of seconds; got {given!r}. Give e.g. 600.")
    return seconds
