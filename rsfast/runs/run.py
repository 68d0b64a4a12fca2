"""A run: certificates or predictions of many images into a run folder, from where it stopped."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from typing_extensions import Unpack

from .. import ops
from .._check import as_real
from .._digests import state_dict_sha256
from .._versions import versions
from ..api import warn_of_radius
from ..engine.forward import Model
from ..engine.incremental import IncrementalCertification, PairOfModels, check_pair
from ..engine.inputs import Source, Unreadable
from ..engine.modes import device_of
from ..engine.options import CertifyOptions, SamplingOptions, checked, options_of, refuse_unknown
from ..engine.plan import Prediction, SamplingPlan
from ..engine.ranks import Ranks
from ..engine.sampling import Sampling, check_model, expected, warn_if_hopeless
from ..heads import Head, Votes
from ..noise import STREAM_VERSION, Noise, check_noise
from ..stats import incremental
from ..stats.certificate import Certificate
from ..stats.common import check_alpha
from ..stats.incremental import check_before
from ..stats.prediction import smallest_predictable_n
from . import checkpoint, results, settings
from .environment import Environment
from .events import Log
from .images import Images
from .layout import CERTIFY_COLUMNS, PREDICT_COLUMNS, SKIPPED, read_skipped
from .merge import RunFolders
from .recertify import certificates_of, check_first, origin_of
from .results import Results
from .rows import RowSampler
from .tables import EmptyTable
from .writer import RunWriter

_TRACE = "trace.json"  # in the run folder
_ABOUT = ("command", "model", "weights", "weights_sha256", "data", "data_sha256")
_ABOUT_IF_KNOWN = ("checkpoint", "preprocessing", "class_names")  # which earlier versions did not write
_NOT_OF_A_RUN = ("input_ids", "progress")
_VOTES = Votes()
_ENVIRONMENT = Environment()


class Run:
    """Certify or predict images into a run folder, and go on there after a stop: as ``rsfast certify`` and ``predict``.

    Each image has its row on disk as soon as it is finished. Samples of unfinished images are saved every 30 seconds, and
    when SIGINT or SIGTERM arrives, which takes effect after the current batch. A run that goes on gives the rows and counts
    of one that never stopped.

    Parameters
    ----------
    model : callable
        As in `certify`. It runs on one noisy sample here, so that one that fails does before there is a run folder.
    images : Tensor or Dataset
        float32 [N, ...], or uint8 with `GridGaussian` noise. The number of an image is its ``input_id``. Or a map-style
        Dataset of such images [...], or of tuples (image, label): anything with ``__len__`` and ``__getitem__``. It is read
        ahead and never all in memory. An image whose ``__getitem__`` raises `Unreadable` is skipped: a line names it, it
        stands in skipped.jsonl in `out`, and it has no row. These attributes of a Dataset are used, if it has them:
        ``labels`` (or ``targets``), a sequence of int; ``names`` of the images and ``class_names``, sequences of str; and
        ``digest``, a str that tells its content from others. Without a digest the data is known again by its length, its
        names, its labels and its first 16 items.
    noise : Noise
    out : path-like
        The run folder, made if it does not exist.
    num_classes : int
    labels : sequence of int, optional
        True classes [N], in place of those of a Dataset.
    workers : int
        Processes that read a Dataset; with 0, a thread does. They begin without anything of this process (spawn), so pickle
        must take the Dataset, and a script starts its run under ``if __name__ == "__main__"``.
    start, end, skip : int
        Take the multiples of skip from start to before end; all images by default.
    mean, std : sequence of float, optional
        The model takes ``(image - mean) / std``: one number, or one a channel.
    resume : bool
        Go on with the run in `out`, if there is one. A seed or batch size that is left out is then that of the run.
    device : torch.device or str, optional
        Where the model runs; by default where its parameters are, or else the images.
    about : mapping of str, optional
        More for the sidecar: ``command``, ``model``, ``weights``, ``weights_sha256``, ``checkpoint``, ``data`` and
        ``data_sha256``, strings; ``preprocessing``, a dict of plain JSON values; and ``class_names``, in place of those of a
        Dataset. There must be as many as classes, or they are left out with a warning. By default the name of the model's
        class, and a digest of images and labels.
    log_json : str, optional
        File to which events are appended as JSON lines; "-" is stderr.
    profile : bool
        Write a torch.profiler trace of some batches to trace.json in `out`.
    environment : Environment, optional
        Clock, progress bar, how often to save, where to print.
    **options
        Those of `certify` that say how to sample, but for ``input_ids`` and ``progress``. With ``shard`` each process of
        torch.distributed makes the same calls, and `out` is a folder that all share.

    Attributes
    ----------
    seed : int
    backend : str
    execution : Execution
        As recorded in certificates.
    ranks : Ranks

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, the model fails, no image can be read, or the run to resume is damaged.

    Examples
    --------
    >>> import tempfile
    >>> from rsfast import Gaussian
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = Run(torch.nn.Flatten(), torch.eye(2)[:, None], Gaussian(0.1), out, num_classes=2, labels=[0, 1], seed=1)
    ...     found = run.certify(n=1000)
    >>> found.predict.tolist(), found.correct.tolist()
    ([0, 1], [True, True])
    """

    def __init__(
        self,
        model: Model,
        images: torch.Tensor | Dataset[Any],
        noise: Noise,
        out: str | PathLike[str],
        *,
        num_classes: int,
        labels: Sequence[int] | torch.Tensor | None = None,
        workers: int = 0,
        start: int = 0,
        end: int | None = None,
        skip: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resume: bool = False,
        device: torch.device | str | None = None,
        about: Mapping[str, Any] | None = None,
        log_json: str | None = None,
        profile: bool = False,
        environment: Environment = _ENVIRONMENT,
        **options: Unpack[SamplingOptions],
    ) -> None:
        refuse_unknown(SamplingOptions, options)
        if wrong := [name for name in _NOT_OF_A_RUN if name in options]:
            raise TypeError(f"keyword arguments must not be among {', '.join(_NOT_OF_A_RUN)}, got {', '.join(wrong)}")
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.noise, model = check_noise("noise", noise), check_model("model", model)
        self._images = Images(images, labels, num_classes, noise, workers)
        self._model, self._num_classes = model, num_classes
        self.labels, first = self._images.labels, self._images.first
        self.indices = settings.indices_of(start, end, skip, len(self._images))
        self._device = device_of(model, first) if device is None else torch.device(device)
        self._environment, self._profile = environment, profile
        self.ranks = Ranks.find(options.pop("shard", None))
        self._log = Log(log_json, self.ranks, every=environment.event_every, clock=environment.clock)
        self._folders = RunFolders(Path(out), self.ranks, resume, environment.say)
        self._about = self._complete(about or {})
        self._mean, self._std = (None if values is None else list(values) for values in (mean, std))
        self._options = self._resumed(options) | settings.normalisation(mean, std, first.shape[1])
        self._first_logits = self._logits_of(model, str(self._about["model"]))
        self._sampled: tuple[Model, int] = model, num_classes
        self._probe = self._sampling(self.indices, None)
        self._probe.inputs.close()
        self.seed, self.backend, self.execution = self._probe.seed, self._options["backend"], self._probe.execution

    def _logits_of(self, model: Model, name: str) -> list[float | None]:
        """Return a model's first logits on one noisy sample of the first image."""
        once = {name: value for name, value in self._options.items() if name not in ("batch_size", "compile", "cuda_graph")}
        first, hint = self._images.first, self._images.hint()
        return settings.try_model(model, name, first, self._device, self.noise, once, hint)

    def _complete(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the sidecar says of command, model and data; unless it is given, by their own names and bytes."""
        if unknown := about.keys() - {*_ABOUT, *_ABOUT_IF_KNOWN}:
            known = ", ".join((*_ABOUT, *_ABOUT_IF_KNOWN))
            raise TypeError(f"about must have keys among {known}, got {', '.join(sorted(unknown))}")
        own: dict[str, Any] = {"model": settings.name_of(self._model)}
        if "data_sha256" not in about:
            own["data_sha256"] = self._images.sha256()
        found = {**dict.fromkeys(_ABOUT), **own, **about}
        if not isinstance(preprocessing := found.get("preprocessing"), dict | None):
            raise TypeError(
                f"preprocessing in about must be a dict of plain JSON values, or None, got {preprocessing!r:.80}"
            )
        names = settings.check_texts("class_names in about", found.get("class_names")) or self._images.class_names
        if names is not None and len(names) != self._num_classes:
            text = f"{len(names)} names of classes are left out, as num_classes is {self._num_classes}"
            if self.ranks.rank == 0:
                self._environment.say(f"warning: {text}")
            names = None
        return found | {"class_names": names}

    def _resumed(self, options: SamplingOptions) -> dict[str, Any]:
        """Return the options of `Sampling`; seed and batch size, where they are left out, of the run to resume."""
        recorded = self._folders.recorded()
        seed, batch_size = options.get("seed"), options.get("batch_size", "auto")
        new = self.ranks.broadcast(secrets.randbits(64))
        found: dict[str, Any] = {
            **checked(SamplingOptions, options),
            "num_classes": self._num_classes,
            "seed": ops.check_seed(recorded.get("seed", new) if seed is None else seed),
            "batch_size": recorded.get("batch_size", "auto") if batch_size == "auto" else batch_size,
            "backend": ops.backend_for(options.get("backend", "auto"), self._device),
        }
        return {name: value for name, value in found.items() if name not in ("shard", *_NOT_OF_A_RUN)}

    def certify(
        self,
        head: Head = _VOTES,
        *,
        each: Callable[[int, Certificate], object] | None = None,
        **options: Unpack[CertifyOptions],
    ) -> Results:
        """Certify every image that has no row yet, and return all rows.

        Parameters
        ----------
        head : Head
        each : callable, optional
            Called with the idx and the certificate of each image of this process once its row is written.
        **options
            ``n0``, ``n``, ``alpha``, ``bound``, ``rule``, ``lipschitz``, ``radius`` and ``rtol``, as in `certify`.

        Raises
        ------
        TypeError, ValueError
            If an option is not valid, or `out` holds a run of other settings.
        FileExistsError
            If `out` holds a run and `resume` is false.
        BlockingIOError
            If another process writes the run.
        OSError
            If `out` cannot be written, for want of space mostly.
        Stopped
            When a signal ended the run; a KeyboardInterrupt.
        """
        how = settings.certification(self.noise, head, options)
        plan = self._probe.certification([how.spec], how.stopping, how.n0, how.n)
        if not how.spec.exact:
            warn_of_radius(plan.specs[0], how.stopping, how.n0, how.n, self._num_classes)
        return self._run(plan, how.recorded, CERTIFY_COLUMNS, each)

    def predict(
        self, n: int | None = None, alpha: float | None = None, *, each: Callable[[int, int], object] | None = None
    ) -> Results:
        """Predict the class of every image that has no row yet, and return all rows; as `certify`.

        Parameters
        ----------
        n, alpha
            As in `predict`; 1000 and 0.001 by default, where noise is random.
        each : callable, optional
            As in `certify`, with the class or `ABSTAIN`.
        """
        n, alpha = settings.prediction(self.noise, n, alpha)
        if alpha:
            warn_if_hopeless("predict", n, alpha, smallest_predictable_n(alpha))
        return self._run(Prediction(n, alpha), {"n": n, "alpha": alpha}, PREDICT_COLUMNS, each)

    def recertify(
        self,
        run: str | PathLike[str],
        first: Model,
        *,
        alpha: float = 0.001,
        rtol: float = 0.03,
        each: Callable[[int, Certificate], object] | None = None,
    ) -> Results:
        """Certify this model from the run of the model that it was made of, and few samples of both; return all rows.

        Parameters
        ----------
        run : path-like
            A run folder of `certify`, with this run's images, noise, seed and options, of votes.
        first : callable
            The model of that run, with its state_dict and its logits of the first image, as far as the run has them.
        alpha, rtol
            As in `rsfast.compare`.
        each : callable, optional
            As in `certify`.

        Raises
        ------
        TypeError, ValueError
            If that run differs in more than its model, lacks an image, is damaged or not of `first`; else as `certify` and
            `compare`.
        """
        alpha, rtol = check_alpha(alpha), as_real("rtol", rtol, above=0, below=1)
        own = self._sidecar({})
        before = certificates_of(Path(run), own)
        if missing := set(self.indices) - before.keys() - {each.idx for each in read_skipped(Path(run), before)}:
            raise ValueError(f"{run} must have a row of every image, got none of idx {min(missing)}; finish that run first")
        check_before([*before.values()])
        check_pair("first", first, self._model, self._device, next(iter(before.values())).execution)
        check_first(Path(run), own | {"first_logits": self._logits_of(first, "first")}, state_dict_sha256(first))
        self._sampled = PairOfModels(first, self._model, self._num_classes), 3 * self._num_classes
        self._probe = self._sampling(self.indices, None)
        self._probe.inputs.close()
        plan = IncrementalCertification(
            before, alpha=alpha, rtol=rtol, seed=self.seed, backend=self.backend, execution=self.execution
        )
        recorded: dict[str, Any] = {"n0": 0, "n": plan.n, "alpha": alpha, "head": _VOTES.to_dict(), "rtol": rtol}
        recorded |= {"bound": incremental.BOUND, "rule": incremental.RULE, "lipschitz": None, "radius": None}
        return self._run(plan, recorded | origin_of(Path(run), versions()), CERTIFY_COLUMNS, each)

    def _sampling(self, indices: Sequence[int], skip: Callable[[int, Unreadable], object] | None) -> Sampling:
        """Return the sampling of these images; of one that is not to skip any, all are the first."""
        first, read = self._images.like_first, self._images.read
        images: Source = (first if skip is None else read)(indices, self._device)
        shard = "samples" if self.ranks.by_samples else None
        options = {"input_ids": indices, "shard": shard, **self._options}

        def name(place: int) -> str:
            return self._images.title(indices[place])

        model, options["num_classes"] = self._sampled
        return Sampling(model, images, self.noise, name=name, skip=skip, **options)

    def _run(
        self,
        plan: SamplingPlan,
        recorded: Mapping[str, Any],
        columns: tuple[str, ...],
        each: Callable[[int, Any], object] | None,
    ) -> Results:
        """Write the row of every image that has none yet, and return all.

        Where several processes share the images, each writes a run folder of its own, and when all are done the first merges
        them.
        """
        self._options["batch_size"] = self.ranks.broadcast(self._probe.size(expected(plan), pad=True, early=plan.early))
        sidecar = self._sidecar(recorded)
        if self.ranks.shard is not None:
            self.ranks.assert_equal({name: sidecar[name] for name in sidecar if name not in ("started", "first_logits")})
        trace = self._folders.out / _TRACE if self._profile and self.ranks.rank == 0 else None
        resumes = bool(self._folders.recorded())
        writes = self._folders.check(sidecar, columns, self.indices, [trace] if trace else [])
        self._wait()  # nobody writes before all have looked
        with ExitStack() as stack:
            writer = None
            if writes:
                folder, resume = self._folders.own, self._folders.resume
                writer = stack.enter_context(self._environment.writer(folder, sidecar, columns, resume=resume))
            self._folders.lock_others(stack)
            for index, outcome in self._rows(plan, sidecar, columns, writer, trace, resumes):
                if each is not None:
                    each(index, outcome)
            if writer is not None:
                checkpoint.remove(self._folders.own)
        self._wait()
        try:
            if self.ranks.by_inputs and self.ranks.rank == 0:
                self._folders.merge(sidecar, columns, self.indices)
            self._wait()
            return results.read(self._folders.out)
        except EmptyTable:
            why = f"{self._folders.own / SKIPPED} says why"
            raise ValueError(f"images must hold one that can be read, got none of {len(self.indices)}; {why}") from None

    def _rows(
        self,
        plan: SamplingPlan,
        sidecar: Mapping[str, Any],
        columns: tuple[str, ...],
        writer: RunWriter | None,
        trace: Path | None,
        resumes: bool,
    ) -> Iterator[tuple[int, Any]]:
        """Write the row of every image of this process that has none, and yield its idx and its certificate or class."""
        self._wait()  # until every folder is there and locked
        done, skipped, saved = self._folders.on_disk(columns, self.indices, self._images.label)
        mine = [index for index in self.indices if index not in done and index not in skipped]
        if resumes and self.ranks.rank == 0 and mine and not self._folders.has_checkpoint():
            self._environment.say(f"no checkpoint in {self._folders.out}; images without a row begin again")
        self._wait()  # nobody writes a row before all have read
        if self.ranks.by_inputs:
            mine = mine[self.ranks.rank :: self.ranks.world]
        about = {name: sidecar[name] for name in ("command", "norm", "backend", "batch_size", "versions")}
        about |= {"device": str(self._device), "threads": torch.get_num_threads()}
        with self._log.running(images=len(mine), done_before=len(done), **about):
            own, images = self._folders.own, self._images
            sampler = RowSampler(plan, self._sampling, own, writer, images, self.ranks, self._log, self._environment, trace)
            yield from sampler.rows(mine, {index: saved[index] for index in mine if index in saved})

    def _wait(self) -> None:
        """Wait until all processes are here; signals take effect meanwhile."""
        self.ranks.gather(None)

    def _sidecar(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        about = self._about
        sidecar = {
            "command": about["command"],
            "started": self._started,
            **recorded,
            "noise": self.noise.to_dict(),
            "norm": self.noise.norm,
            "seed": self.seed,
            "stream_version": STREAM_VERSION,
            "num_classes": self._num_classes,
            "model": about["model"],
            "state_dict_sha256": state_dict_sha256(self._model),
            "weights": about["weights"],
            "weights_sha256": about["weights_sha256"],
            "first_logits": self._first_logits,
            "data": about["data"],
            "data_sha256": about["data_sha256"],
            "start": self.indices.start,
            "end": self.indices.stop,
            "skip": self.indices.step,
            "mean": self._mean,
            "std": self._std,
            "batch_size": self._options["batch_size"],
            **self.execution.to_dict(),
            "device": self._device.type,
            "backend": self.backend,
            "versions": versions(),
        }
        sidecar |= {name: about[name] for name in _ABOUT_IF_KNOWN if about.get(name) is not None}
        more = (name for name, option in options_of(SamplingOptions).items() if option.recorded)
        return sidecar | {name: self._options[name] for name in more if name not in sidecar}
