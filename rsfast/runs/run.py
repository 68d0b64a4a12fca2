"""A run of the command line: a plan for every image of a file, from where it stopped, to rows on disk."""

from __future__ import annotations

import argparse
import atexit
import math
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import distributed
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import _hints as hints
from .. import ops
from ..api import sample
from ..cli.loading import file_sha256, find_device, load_data, load_model, place_of
from ..cli.weights import state_dict_sha256
from ..doctor import versions
from ..engine.forward import check_logits
from ..engine.plan import SamplingPlan
from ..engine.ranks import ControlSignal, Ranks
from ..engine.sampler import Outcome, Sampler
from ..engine.sampling import Sampling, expected
from ..engine.timing import Profile
from ..noise import STREAM_VERSION, Gaussian
from ..ops.tally import Tally
from ..stats.certificate import Certificate
from . import checkpoint
from .events import Log
from .folder import (
    CHECKPOINT,
    PARTS,
    SIDECAR,
    TABLE,
    check_same_run,
    finished,
    identity,
    read_rows,
    read_sidecar,
    same_logits,
)
from .merge import merge
from .replay import check_rows
from .writer import NO_LABEL, RunWriter, locked, refuse_a_run, remove_run, tidy

_TRACE = "trace.json"  # in the run folder
_EVERY = 30.0  # seconds between checkpoints,
_SHARE = 20  # or so many times as long as one takes
_WORK, _SAVE = 0, 1  # what is to be done after a batch, or the number of a signal; of several ranks' wishes the largest
_LOGITS = 16  # of the first image, recorded to know the model by
_STOPS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class _Images(Dataset[torch.Tensor]):
    """Images of a tensor on the way to a device, one by one."""

    def __init__(self, images: torch.Tensor, indices: Sequence[int], device: torch.device) -> None:
        self.images, self.indices, self.device = images, indices, device

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> torch.Tensor:
        return self.images[self.indices[place]].to(self.device)


class _Counted:
    """A plan that also returns what counts.jsonl keeps of each input."""

    def __init__(self, plan: SamplingPlan) -> None:
        self.plan, self.heads, self.stages = plan, plan.heads, plan.stages
        self.early, self.tracks, self.lipschitz = plan.early, plan.tracks, plan.lipschitz

    def evaluate(self, selection: Tally, ranges: Sequence[Tally], input_ids: Sequence[int]) -> list[Any]:
        """Return the certificate or the class of each input and its counts, or None."""
        found: list[Any] = []
        for place, outcome in enumerate(self.plan.evaluate(selection, ranges, input_ids)):
            if outcome is None:
                found.append(None)
                continue
            estimation = [tally.integers(place) for tally in ranges]
            counts: dict[str, Any] = {"selection": selection.integers(place)} if self.stages[0][1] else {}
            counts["estimation"] = estimation[0] if len(estimation) == 1 else estimation
            found.append((outcome[0] if isinstance(outcome, list) else outcome, counts))
        return found


class Run:
    """What `rsfast certify` and `predict` were asked for: checked, loaded, and tried on one sample.

    Parameters
    ----------
    args : argparse.Namespace
        Of the command line.

    Attributes
    ----------
    seed : int
    backend : str
    execution : Execution
        As recorded in certificates.
    ranks : Ranks
        What is divided among the processes of torchrun.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.noise, self.out = args, Gaussian(args.sigma), Path(args.out)
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self.ranks, self._device = _join(args)
        args.resume |= _restarts() > 0
        self._log = Log(args.log_json, self.ranks)
        recorded = read_sidecar(self._sidecar_file()) if args.resume and self._sidecar_file().exists() else {}
        self.seed = ops.check_seed(self._setting("seed", recorded, self.ranks.broadcast(secrets.randbits(64))))
        self._images, self.labels = load_data(args.data, args.num_classes)
        self.indices = _indices(args.start, args.end, args.skip, len(self._images))
        self._model = load_model(args.model, args.weights, self._device)
        self._options: dict[str, Any] = {
            "num_classes": args.num_classes,
            "seed": self.seed,
            "dtype": args.dtype,
            "channels_last": args.channels_last,
            "autocast": args.autocast,
            "backend": ops.backend_for(args.backend, self._device),
            "clamp": _clamp(args.clamp),
            **_normalisation(args.mean, args.std, self._images.shape[1]),
        }
        first = self._images[:1]
        raised: list[Exception] = []

        def model(batch: torch.Tensor) -> torch.Tensor:
            try:
                output = self._model(batch)
            except Exception as error:
                raised.append(error)
                raise
            logits = check_logits(output, 1, args.num_classes)
            # As JSON can hold them: None for NaN and infinity.
            self._first_logits = [each if math.isfinite(each) else None for each in logits[0, :_LOGITS].tolist()]
            return logits

        try:  # so that a model that does not fit fails before there is a run folder
            sample(model, first.to(self._device), self.noise, n=1, stream="user", batch_size=1, **self._options)
        except Exception as error:
            if error not in raised and not isinstance(error, RuntimeError):
                raise
            place = place_of(error)
            kind = "" if isinstance(error, RuntimeError) and not place else f"{type(error).__name__}: "
            what = f"--model {args.model} fails on a batch {[1, *self._images.shape[1:]]} of {args.dtype}"
            hint = hints.axes(self._images.shape, "images") if self._images.ndim > 2 else ""
            raise ValueError(f"{what}: {place}{kind}{error}{hint and f'; {hint}'}") from error
        self._options |= {"compile": args.compile, "cuda_graph": args.cuda_graph}
        self._options["batch_size"] = self._setting("batch_size", recorded, "auto")
        self._probe = self._sampling(self.indices)
        self._probe.inputs.close()
        self.execution, self.backend = self._probe.execution, self._options["backend"]
        self._signal = _WORK
        self._next_save = 0.0
        self._wishes = ControlSignal(self.ranks)

    def _setting(self, name: str, recorded: Mapping[str, Any], otherwise: Any) -> Any:
        """Return an option as given, or, where it is left out or "auto", as in the run to resume, or `otherwise`."""
        given = getattr(self.args, name)
        return recorded.get(name, otherwise) if given in (None, "auto") else given

    def _sampling(self, indices: Sequence[int]) -> Sampling:
        images = _Images(self._images, indices, self._device)
        shard = "samples" if self.ranks.by_samples else None
        return Sampling(self._model, images, self.noise, input_ids=indices, shard=shard, **self._options)

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.ranks.rank == 0

    @property
    def _folder(self) -> Path:
        """The run folder that this process writes, if it does."""
        return self.out / PARTS / f"{self.ranks.rank}-of-{self.ranks.world}" if self.ranks.by_inputs else self.out

    def _sidecar_file(self) -> Path:
        files = [folder / SIDECAR for folder in (self.out, *self._parts())]
        return next((file for file in files if file.exists()), files[0])

    def rows(self, plan: SamplingPlan, settings: Mapping[str, Any], columns: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
        """Take every image that has no row yet through a plan, write its row, and yield its idx and what was found.

        Where several processes share the images, each writes a run folder of its own, and when all are done the first merges
        them. Signals are heard after the batch that is under way; then unfinished images are saved.
        """
        samples = sum(len(stage) for _, stage in plan.stages)
        self._options["batch_size"] = self.ranks.broadcast(self._probe.size(expected(plan)))
        sidecar = self._sidecar(settings)
        if self.ranks.shard is not None:
            self.ranks.assert_equal({name: sidecar[name] for name in sidecar if name not in ("started", "first_logits")})
        begun = self.args.resume and self._sidecar_file().exists()
        if begun:
            self._check_same_run(self._sidecar_file(), sidecar)
        writes = self._check_folder(sidecar, columns)
        self._wait()  # nobody writes before all have looked
        about = {name: sidecar[name] for name in ("command", "backend", "batch_size", "versions")}
        about |= {"device": str(self._device), "threads": torch.get_num_threads()}
        with ExitStack() as stack:
            writer = None
            if writes:
                writer = stack.enter_context(RunWriter(self._folder, sidecar, columns, resume=self.args.resume))
            if self.ranks.by_inputs and self.first:
                for part in self._parts():
                    if not part.name.endswith(f"-of-{self.ranks.world}"):  # one that another job may be writing
                        stack.enter_context(locked(part))
            self._wait()  # until every folder is there and locked
            done, saved = self._on_disk(columns, begun)
            self._wait()  # nobody writes a row before all have read
            mine = [index for index in self.indices if index not in done]
            if self.ranks.by_inputs:
                mine = mine[self.ranks.rank :: self.ranks.world]
            saved = {index: saved[index] for index in mine if index in saved}
            with self._log.running(images=len(mine), done_before=len(done), **about):
                yield from self._sample(_Counted(plan), mine, saved, samples, writer)
            if writer is not None:
                checkpoint.remove(self._folder)
        if self.ranks.by_inputs:
            self._merge(sidecar, columns)

    def _check_folder(self, sidecar: Mapping[str, Any], columns: tuple[str, ...]) -> bool:
        """Refuse a folder that this run cannot go on in; tell whether this process is to write a run folder."""
        parts = self._parts()
        if not self.args.resume:
            refuse_a_run(self.out)
            others = [*parts, *([self.out / _TRACE] if self.args.profile else [])]
            for other in others:
                if other.exists():
                    raise FileExistsError(f"{other} exists; name another folder, or move it away first")
        elif self.ranks.by_inputs and self._merged():
            if not finished(self.out, columns).issuperset(self.indices):
                raise ValueError(
                    f"--out {self.out} holds a run of one process, or with --shard samples; go on so, or name another folder"
                )
            return False
        elif self.ranks.by_inputs:
            for part in parts:
                self._check_same_run(part / SIDECAR, sidecar)
        elif parts and not self._merged():
            raise ValueError(
                f"--out {self.out} holds a run of several processes; go on with two or more, --shard inputs, or merge the "
                f"folders in {self.out / PARTS} with rsfast merge"
            )
        return self.first or not self.ranks.by_samples

    def _check_same_run(self, file: Path, sidecar: Mapping[str, Any]) -> None:
        """Refuse another run; and another model where no state_dict tells it: code that has changed, or a function."""
        check_same_run(file, sidecar)
        recorded = read_sidecar(file)
        if "first_logits" not in recorded:
            self._say(f"warning: {file} holds no first_logits; whether --model still computes the same cannot be checked")
        elif not same_logits(sidecar, recorded):
            raise ValueError(
                f"--model {self.args.model} is another than in the run in --out {self.out}: its logits of the first image "
                f"are {str(self._first_logits)[:70]}, and first_logits in {file} is {str(recorded['first_logits'])[:70]}; "
                "to resume it must be the same model"
            )

    def _on_disk(self, columns: tuple[str, ...], begun: bool) -> tuple[set[int], dict[int, dict[str, Any]]]:
        """Return the images that have rows in the folders of this run, and what was saved of others."""
        done: set[int] = set()
        saved: dict[int, dict[str, Any]] = {}
        folders = self._parts() if self.ranks.by_inputs and not self._merged() else [self.out]
        for number, folder in enumerate(folders):
            rows = read_rows(folder, columns)
            for row in rows:
                if row.idx not in self.indices:
                    raise ValueError(f"{folder / TABLE} has idx {row.idx}; to resume it must be in {self.indices}")
                if row.label != (label := NO_LABEL if self.labels is None else self.labels[row.idx]):
                    raise ValueError(
                        f"{folder / TABLE} has label {row.label} for idx {row.idx}, and --data has {label}; to resume it "
                        "must be the same"
                    )
                done.add(row.idx)
            if number % self.ranks.world == self.ranks.rank:
                check_rows(folder, rows, columns)
            for index, each in checkpoint.load(folder, identity(read_sidecar(folder / SIDECAR))).items():
                if index not in saved or _drawn(each) > _drawn(saved[index]):  # of several, some may be older
                    saved[index] = each
        missing = not any((folder / CHECKPOINT).exists() for folder in folders)
        if begun and missing and self.first and not done.issuperset(self.indices):
            self._say(f"no checkpoint in {self.out}; images without a row begin again")
        return done, saved

    def _parts(self) -> list[Path]:
        """Return the folders of several processes; not of one that was killed before there was anything in its own."""
        return [file.parent for file in sorted(self.out.glob(f"{PARTS}/[0-9]*-of-[0-9]*/{SIDECAR}"))]

    def _merged(self) -> bool:
        """Tell whether the run folder itself holds a run, and not only a part of what a merge puts there, the table last."""
        table, sidecar = self.out / TABLE, self.out / SIDECAR
        return sidecar.exists() and (table.exists() or not self._parts())

    def _wait(self) -> None:
        """Wait until all processes are here; signals are heard meanwhile."""
        self.ranks.gather(None)

    def _sample(
        self, plan: SamplingPlan, mine: list[int], saved: dict[int, dict[str, Any]], samples: int, writer: RunWriter | None
    ) -> Iterator[tuple[int, Any]]:
        held = {index: each for index, each in saved.items() if "outcome" in each}
        begun = {index: each for index, each in saved.items() if "outcome" not in each}
        fresh = [index for index in mine if index not in held]
        outcomes = self._outcomes(plan, fresh, begun, held, samples, writer)
        began = time.perf_counter()
        for index in mine:
            if index in held:
                outcome, counts = _outcome(held[index]["outcome"]), held[index]["counts"]
            else:
                outcome, counts = next(outcomes).result
            ended = time.perf_counter()
            if writer is not None:
                writer.write(index, None if self.labels is None else self.labels[index], outcome, ended - began, counts)
            self._log.image(outcome if isinstance(outcome, int) else outcome.prediction)
            held.pop(index, None)
            began = ended
            yield index, outcome
        next(outcomes, None)  # there is none, but what it had opened is closed

    def _outcomes(
        self,
        plan: SamplingPlan,
        fresh: list[int],
        begun: Mapping[int, Mapping[str, Any]],
        held: Mapping[int, Mapping[str, Any]],
        samples: int,
        writer: RunWriter | None,
    ) -> Iterator[Outcome]:
        """Sample these images; meanwhile save, log and hear signals."""
        if not fresh:
            return
        total, asked = len(fresh) * samples, sum(each["asked"] for each in begun.values())
        # One bar is enough, and none among events. None shows it where stderr is a terminal.
        quiet = True if self.args.log_json == "-" or not self.first else None
        with ExitStack() as stack:
            stack.enter_context(self._hearing_signals(writer))
            bar = stack.enter_context(tqdm(total=total, initial=asked, unit="sample", unit_scale=True, disable=quiet))
            sampling = self._sampling(fresh)
            stack.enter_context(sampling.inputs)
            sampler = sampling.sampler(plan, bar, pad=True, saved=begun)
            stack.enter_context(self._log.watching(bar, sampler.batches))
            profile = None
            if self.args.profile and self.first:
                profile = stack.enter_context(Profile(self.out / _TRACE, self._say))

            def after_batch() -> None:
                self._log.batch()
                if profile is not None:
                    profile()
                self._after(sampler, writer, held)

            sampler.after_batch = after_batch
            try:
                yield from sampler
            except Exception as error:
                if writer is not None and not isinstance(error, OSError):  # which says so itself
                    self._say(f"rows in {self._folder}: {len(writer.done)}; --resume goes on from the last checkpoint")
                raise

    def _after(self, sampler: Sampler, writer: RunWriter | None, held: Mapping[int, Any]) -> None:
        """After a batch: save what is not finished if it is time to, or if a signal came, which is then obeyed."""
        due = writer is not None and time.monotonic() > self._next_save
        wish = self._wishes(self._signal or (_SAVE if due else _WORK))
        if wish == _WORK:
            return
        began = time.monotonic()
        if self._next_save or wish != _SAVE:
            unfinished = sampler.unfinished()
            if writer is not None:
                checkpoint.save(self._folder, writer.identity, chain(unfinished, held.values(), map(_line, sampler.held())))
                self._log.event("checkpoint", unfinished=len(sampler.scheduler.active))
        now = time.monotonic()
        self._next_save = now + max(_EVERY, _SHARE * (now - began))
        if wish != _SAVE:
            self._stop(wish, writer, "samples of other images are saved; ")

    @contextmanager
    def _hearing_signals(self, writer: RunWriter | None) -> Iterator[None]:
        """Note SIGINT and SIGTERM, to be obeyed after the batch that is under way; the second is obeyed at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _: FrameType | None) -> None:
            if self._signal and self.ranks.world > 1:  # torchrun passes on what a terminal has sent already
                return
            if self._signal:
                self._stop(number, writer, "")
            self._signal = number

        before = {number: signal.signal(number, note) for number in _STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _say(self, text: str) -> None:
        print(f"{self.args.parser.prog}: {text}", file=sys.stderr)

    def _stop(self, number: int, writer: RunWriter | None, saved: str) -> NoReturn:
        parser: argparse.ArgumentParser = self.args.parser
        kept = ""
        if writer is not None:
            kept = f"; rows in {self._folder}: {len(writer.done)}; {saved}--resume goes on"
        parser.exit(128 + number, f"{parser.prog}: {_STOPS[signal.Signals(number)]}{kept}\n")

    def _merge(self, sidecar: Mapping[str, Any], columns: tuple[str, ...]) -> None:
        """Make one run folder of those of all processes, once all are done; killed anywhere, this can be done again."""
        self._wait()
        if self.first and (parts := self._parts()):
            tidy(self.out)
            if not self._merged():
                done = set[int]().union(*(finished(part, columns) for part in parts))
                if missing := set(self.indices) - done:
                    raise ValueError(
                        f"--out is {self.out}, where {len(missing)} images have no row though all processes are done, idx "
                        f"{min(missing)} the first; it must be a folder that all of them share"
                    )
                merge(parts, self.out, check_counts=False)
            for part in parts:
                with suppress(ValueError):  # another run's folder stays
                    check_same_run(part / SIDECAR, sidecar)
                    remove_run(part)
            # Of a process that was killed at its birth, and of all; but where there are other files, they stay.
            for folder in (*self.out.glob(f"{PARTS}/[0-9]*-of-[0-9]*"), self.out / PARTS):
                with suppress(OSError):
                    folder.rmdir()
        self._wait()

    def _sidecar(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        args = self.args
        return {
            "command": args.command_line,
            "started": self._started,
            **settings,
            "noise": self.noise.to_dict(),
            "seed": self.seed,
            "stream_version": STREAM_VERSION,
            "num_classes": args.num_classes,
            "model": args.model,
            "state_dict_sha256": state_dict_sha256(self._model),
            "weights": args.weights,
            "weights_sha256": args.weights and file_sha256(args.weights),
            "first_logits": self._first_logits,
            "data": args.data,
            "data_sha256": file_sha256(args.data),
            "start": self.indices.start,
            "end": self.indices.stop,
            "skip": self.indices.step,
            "mean": args.mean,
            "std": args.std,
            "batch_size": self._options["batch_size"],
            **self.execution.to_dict(),
            "device": self._device.type,
            "backend": self.backend,
            "versions": versions(),
        }


def _drawn(saved: Mapping[str, Any]) -> float:
    """Return how many samples were saved of an image; of one that is decided, all."""
    return math.inf if "outcome" in saved else saved["asked"]


def _line(each: Outcome) -> dict[str, Any]:
    """Return what is saved of an image that is decided and has no row yet, as those before it have none."""
    outcome, counts = each.result
    value = outcome if isinstance(outcome, int) else outcome.to_dict()
    return {"idx": each.input_id, "outcome": value, "counts": counts}


def _outcome(value: Any) -> Certificate | int:
    return value if isinstance(value, int) else Certificate.from_dict(value)


def _restarts() -> int:
    """Return how often torchrun has started this job again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _join(args: argparse.Namespace) -> tuple[Ranks, torch.device]:
    """Join the other processes of torchrun, if there are any; return which of them this is, and its device."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    name = args.device
    if world > 1 and name == "cuda":
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = find_device(name)
    if world == 1:
        if args.shard is not None and "WORLD_SIZE" not in os.environ:
            raise ValueError(f"--shard is {args.shard}; it is for several processes, under torchrun")
        return Ranks(), device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        # Where torchrun has started a job again, its store still holds the addresses of those that died.
        store, rank, world = next(rendezvous("env://"))
        store = PrefixStore(f"rsfast {_restarts()}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # One that is done waits for the slowest, however long that takes: torchrun ends it where there is no use in that.
        patience = timedelta(days=365)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
        atexit.register(distributed.destroy_process_group)
    return Ranks.find(args.shard or "inputs"), device


def _indices(start: int, end: int | None, skip: int, count: int) -> range:
    """Return the multiples of skip from start to end, so that shards take what one run takes."""
    stop = count if end is None else end
    if not 0 <= start < stop <= count:
        raise ValueError(
            f"--start is {start} and --end is {stop}; they must be 0 <= start < end <= {count}, the images in --data"
        )
    indices = range(start + -start % skip, stop, skip)
    if not indices:
        raise ValueError(f"--skip is {skip}, and no multiple of it lies from --start {start} to before --end {stop}")
    return indices


def _clamp(limits: list[float] | None) -> tuple[float, float] | None:
    if limits is None:
        return None
    low, high = limits
    if not low <= high:
        raise ValueError(f"--clamp is {low} {high}; it must be LOW and HIGH, numbers with LOW at most HIGH")
    return low, high


def _normalisation(mean: list[float] | None, std: list[float] | None, channels: int) -> dict[str, list[float]]:
    """Return (y - mean) / std as the scale and shift of `ops.perturb`."""
    if mean is None and std is None:
        return {}
    if mean is None or std is None:
        raise ValueError("--mean and --std go together; give 0 for no mean, 1 for no std")
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} numbers; it must have 1 or {channels}, one a channel")
    if not all(0 < s < math.inf for s in std):
        raise ValueError(f"--std is {std}; each must be positive and finite")
    mean, std = (values * (channels // len(values)) for values in (mean, std))
    return {"scale": [1 / s for s in std], "shift": [-m / s for m, s in zip(mean, std, strict=True)]}
