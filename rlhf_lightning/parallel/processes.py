"""Several processes as one: means over them, what all of them hold, who goes first.

Every function is the plain thing where there is one process. Losses divide by the mean count of a process, and
gradients are averaged: together that is the sum over all rows divided by the count of all rows, however the rows are
divided.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import copy
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
Share = Callable[[Sequence[Any]], list[Any]]
"""From jobs to their results in order, of which every process does a part; see `sharing`."""
_AT_ONCE = 2
"""Jobs that each of several processes does between two times that they wait for each other: a slow one counts less."""
_LAUNCHER = 3.0
"""Seconds within which a launcher has ended the other processes once one has failed."""


class FirstProcessError(Exception):
    """The cause of every error that came from the first process, which says it itself."""


def init_process_group(gpu: bool) -> int:
    """Meet the other processes that `torchrun` started; returns how many there are.

    Args:
        gpu: Whether each process has a GPU.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not distributed.is_initialized():
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Some steps are the first process's work, and the others wait for hours.
        distributed.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(days=7))
    return count


def destroy_process_group() -> None:
    """Part from the other processes when all have come so far.

    A thread of gloo that lets go of a tensor while the interpreter ends aborts the process.
    """
    if world_size() > 1:
        distributed.barrier()
        distributed.destroy_process_group()
        time.sleep(0.5)  # caches of DTensor keep such threads alive; they need a moment only


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return distributed.get_rank() if world_size() > 1 else 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of a tensor that has the same shape in every process, without gradient."""
    if world_size() == 1:
        return value.detach()
    summed = value.detach().clone()
    distributed.all_reduce(summed)
    return summed


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean of a tensor that has the same shape in every process, without gradient."""
    return all_reduce_sum(value) / world_size()


def mean_over_rows(values: Tensor) -> tuple[Tensor, int]:
    """The mean of a vector with a number per row, over the rows of all processes, and how many these are.

    Args:
        values: Those of this process, of which it may have any number.
    """
    if world_size() == 1:
        return values.detach().mean(), len(values)
    total, rows = all_reduce_sum(torch.stack([values.sum(), values.new_tensor(len(values))]))
    return total / rows, int(rows)


def process_weight(count: Tensor) -> Tensor:
    """A process's count as a multiple of the mean one: what turns its mean into its part of the mean over all rows."""
    return count / all_reduce_mean(count).clamp(min=1 / world_size())


def all_gather_objects(value: T) -> list[T]:
    """The value of every process, in order; tensors must be on the CPU."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    distributed.all_gather_object(found, value)
    return found


def over_all_rows(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """This process's part of a function of the rows of all; each process has every n-th row."""
    parts = all_gather_objects(values.cpu())
    places = torch.cat([torch.arange(len(part)) * len(parts) + number for number, part in enumerate(parts)])
    return function(torch.cat(parts)[places.argsort()])[rank() :: len(parts)].to(values.device)


def on_rank_zero(function: Callable[[], T]) -> T:
    """What a function returns in the first process; the others wait for it.

    What it raises there is raised in all of them, in the others because of a `FirstProcessError`.
    """
    if rank() > 0:
        found: list[Any] = [None, None]
        distributed.broadcast_object_list(found)
        if found[1] is not None:
            raise found[1] from FirstProcessError()
        return cast(T, found[0])
    try:
        value = function()
    except (Exception, SystemExit) as error:
        if world_size() > 1:
            with suppress(RuntimeError):  # what ends this process may have ended the others already
                distributed.broadcast_object_list([None, _portable(error)])
        raise
    if world_size() > 1:
        distributed.broadcast_object_list([value, None])
    return value


def sharing(work: Callable[[Share], T], part: Callable[[Any], Any], prepare: Callable[[], Any] = lambda: None) -> T:
    """What a function returns in the first process, while the others do parts of its work.

    Args:
        work: The function. It is given another one, from a list of jobs, which must be picklable, to their results in
            order: of n processes each does every n-th job.
        part: Does one job, in any process; what it raises is raised in the first process, and then in all.
        prepare: Loads what parts need in the other processes, while the first begins; what it raises a part raises too.
    """

    def share(jobs: Sequence[Any]) -> list[Any]:
        if world_size() > 1:
            distributed.broadcast_object_list([list(jobs)])
        return _in_order(part, jobs)

    def first() -> T:
        try:
            value = work(share)
        except Exception:  # not where this process is told to end: the launcher ends the others
            end()
            raise
        end()
        return value

    def end() -> None:
        if world_size() > 1:
            with suppress(RuntimeError):
                distributed.broadcast_object_list([None])

    if rank() > 0:
        with suppress(Exception):
            prepare()
    while rank() > 0:
        asked: list[Any] = [None]
        distributed.broadcast_object_list(asked)
        if asked[0] is None:
            break
        with suppress(_PartError):  # the first process says it
            _in_order(part, asked[0])
    return on_rank_zero(first)


def by_turns(share: Share, jobs: Sequence[Any]) -> Iterator[Any]:
    """Results of shared jobs in order, as soon as every process has done some; see `sharing`."""
    turn = world_size() * (_AT_ONCE if world_size() > 1 else 1)
    for start in range(0, len(jobs), turn):
        yield from share(jobs[start : start + turn])


class _PartError(Exception):
    """A part of shared work failed in some process."""


def _in_order(part: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """The results of all jobs, in every process, which do them together."""
    mine: list[Any] = []
    fault: Exception | None = None
    try:
        mine = [part(job) for job in jobs[rank() :: world_size()]]
    except Exception as error:
        if world_size() == 1:
            raise
        fault = error
    found = all_gather_objects((mine, None if fault is None else _portable(fault)))
    faults = [said for _, said in found if said is not None]
    if faults and rank() > 0:
        raise _PartError
    if faults:
        raise fault or faults[0]  # its own with the place where it was raised
    return [found[number % len(found)][0][number // len(found)] for number in range(len(jobs))]


def _portable(error: BaseException) -> BaseException:
    """An error that other processes can read: itself, or one that says the same."""
    try:
        pickle.dumps(error)
        copy(error)  # is built anew as a reader of the pickle would build it
    except Exception:  # a class may be built from anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def says(error: BaseException) -> bool:
    """Whether this process is the one that tells the user of an error: once, not once for each process.

    What came from the first process is its to say. Any other error of another process may be one that the first has
    too: then the launcher ends this process while it waits here.
    """
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, FirstProcessError):
            return False
        each = each.__cause__ or each.__context__
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_LAUNCHER)
    return True


def mean_gradients(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The mean over processes of gradients; those of sharded weights are it already."""
    if world_size() == 1 or any(isinstance(gradient, DTensor) for gradient in gradients):
        return list(gradients)
    flat = all_reduce_mean(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


def no_sync(model: Any) -> AbstractContextManager[None]:
    """Keep `DistributedDataParallel` from exchanging gradients within the block; they are averaged by hand."""
    synchronised = isinstance(model, DistributedDataParallel)
    return cast(AbstractContextManager[None], model.no_sync()) if synchronised else nullcontext()


def all_reduce_gradients(module: nn.Module) -> None:
    """Give every process the mean gradient of the weights that learn."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if world_size() == 1 or any(isinstance(parameter, DTensor) for parameter in learning):
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
    for parameter, gradient in zip(learning, mean_gradients(gradients), strict=True):
        parameter.grad = gradient
