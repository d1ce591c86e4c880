"""Checkpoints: what a run needs to go on after it was interrupted, on disk."""

from __future__ import annotations

import atexit
import functools
import os
import threading
import traceback
from collections.abc import Mapping
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self

import jax

from gradtx import extras
from gradtx.arguments import COUNT, COUNT_OR_ZERO, check
from gradtx.messages import listed
from gradtx.training import saved

_OWNER = "Checkpoints"
# The parts of a checkpoint, each a folder in the folder of its step.
_STATE, _RUN = "state", "run"
# Where a checkpoint that is no longer kept is moved to at once, and deleted from.
_DELETED = ".deleted"


class Checkpoint(NamedTuple):
    """What `Checkpoints.restore` returns.

    Attributes:
        state: the state of the run, a tree of the structure of the target.
        position: the position in the data that was saved with it.
        settings: the settings that the run was started with; None: it was given none.
    """

    state: Any
    position: Any
    settings: dict[str, Any] | None


class Checkpoints:
    """The checkpoints of a run, in a folder.

    A checkpoint has all that the run needs to go on as if it had never been interrupted: the state,
    the position in the data and the settings. orbax writes it in the background, while the run goes
    on, under another name, which it changes when everything is written: a checkpoint is complete or
    not there. Nothing in it is a pickle, so that reading one runs no code.

    In a run of several processes (`jax.distributed`), each makes this object and calls its methods
    at the same steps. Each writes the parts of the arrays on its own devices, into a folder that
    they share.

    Args:
        directory: the folder, made by the first save if it is not there; relative to the working
            directory of now, or an address that orbax understands, such as `gs://bucket/run`.
        every: the number of steps from one checkpoint to the next, >= 1. `save` writes at the
            multiples of it, or at the first step that it is called for after one.
        keep: the number of checkpoints to keep, the last ones, >= 1; older ones are deleted when a
            newer one is complete. None: all.
        settings: what the run was started with, a dictionary of values of JSON, which `restore`
            compares with those of the checkpoint; None: nothing to compare.

    Raises:
        ValueError: if `every` or `keep` is not a whole number >= 1, `settings` are not values of
            JSON, or `directory` is a file.
        ImportError: if orbax is not installed, naming the extra.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.training import Checkpoints, TrainState
        >>> state = TrainState.create({"w": jnp.ones(2)}, gradtx.adam(1e-3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpoints(folder, every=10, keep=2, settings={"lr": 1e-3}) as checkpoints:
        ...         for step in range(0, 40, 5):
        ...             written = checkpoints.save(state._replace(step=jnp.int32(step)))
        ...     print(checkpoints.steps(), checkpoints.restore(state).state.step)
        [20, 30] 30
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int = 1,
        keep: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._every = int(check(_OWNER, "every", every, COUNT))
        self._keep = None if keep is None else int(check(_OWNER, "keep", keep, COUNT))
        self._settings = saved.as_settings(_OWNER, settings)
        self._orbax = _load("orbax.checkpoint")
        path = os.fspath(directory)
        self.directory = _load("etils.epath").Path(path if "://" in path else os.path.abspath(path))
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"{_OWNER}: directory must be a folder, got the file {self.directory}")
        self._manager: Any = None
        # The step of the last call of `save` or `restore`.
        self._seen: int | None = None
        # The step of the last checkpoint that this object wrote or read.
        self._last: int | None = None

    def save(
        self, state: Any, position: Any = None, *, step: int | None = None, force: bool = False
    ) -> bool:
        """Write a checkpoint if it is time to, in the background.

        When this returns, the state has been copied, and a step may take over its memory (see
        `donate` of `make_train_step`). If the last checkpoint is still being written, this waits
        for it first.

        Args:
            state: the state of the run: a `TrainState`, or, with `step`, any tree of arrays.
            position: the position in the data, if it is more than the number of steps: a small
                tree of dictionaries, lists, numbers, strings, None, arrays and PRNG keys.
            step: the number of steps that led to the state; None: `state.step`, which is waited
                for at each call.
            force: whether to write at any step, for instance at the end of the run.

        Returns:
            Whether a checkpoint is written. The one that was written last, or from which the run
            goes on, is not written again.

        Raises:
            ValueError: if there is something else in the state or the position, or if the folder
                has checkpoints that this run would mix with its own: from this step on, or of
                another program.
        """
        owner = f"{_OWNER}.save"
        number = _step_of(owner, state, step)
        if number == self._last or not (force or self.should_save(number)):
            self._seen = number
            return False
        run = {
            "position": saved.to_json(owner, "position", position),
            "settings": self._settings,
            "state": saved.with_rows(saved.leaves_of(owner, "state", state), state),
        }
        _check_dtypes(owner, run["state"])
        self.wait()
        self._check_free(owner, number)
        arguments = self._orbax.args
        self._manager = self._manager or self._new_manager(owner)
        _close_at_exit(self)
        self._manager.save(
            number,
            args=arguments.Composite(
                **{
                    _STATE: arguments.StandardSave(saved.stored(state)),
                    _RUN: arguments.JsonSave(run),
                }
            ),
            force=True,
        )
        self._seen = self._last = number
        return True

    def should_save(self, step: int) -> bool:
        """Whether it is time to write a checkpoint at a step, as `save` decides it."""
        if self._seen is None:
            return step % self._every == 0
        return step // self._every > self._seen // self._every

    def restore(
        self, target: Any, step: int | None = None, *, check_settings: bool = True
    ) -> Checkpoint:
        """Read a checkpoint.

        Args:
            target: a tree of the structure of the state that was saved, such as the state before
                the first step. Its arrays, or shapes (`jax.ShapeDtypeStruct`), say with their
                shardings where to put the arrays, which may be on another mesh or another number
                of devices; those without a sharding are put where new arrays are. The stacks of
                `gradtx.sharding.distributed` get the padding that the target has, if the state was
                a `TrainState`, or had the parameters as `params`; otherwise, restore the shapes
                that were saved, and use `gradtx.migrate`.
            step: which checkpoint; None: the last one.
            check_settings: whether the settings must be those of the checkpoint.

        Returns:
            `Checkpoint(state, position, settings)`. In the position there are lists for tuples and
            NumPy arrays for arrays.

        Raises:
            FileNotFoundError: if there is no checkpoint, or none of this step.
            ValueError: if the arrays of the target are not those of the checkpoint, naming paths,
                shapes and dtypes, or settings are not the same, naming them.
        """
        owner = f"{_OWNER}.restore"
        self.wait()
        number = self._existing(owner, step)
        folder, arguments = self.directory / str(number), self._orbax.args
        with self._orbax.Checkpointer(self._orbax.CompositeCheckpointHandler()) as reader:
            parts = arguments.Composite(**{_RUN: arguments.JsonRestore()})
            run = reader.restore(folder, args=parts)[_RUN]
            leaves = {path: saved.Leaf.from_json(leaf) for path, leaf in run["state"].items()}
            found = list(saved.differences(leaves, saved.leaves_of(owner, "target", target)))
            if found:
                raise ValueError(
                    f"{owner}: target does not fit the checkpoint {folder}:{saved.lines_of(found)}"
                    f"{saved.advice(found)}"
                )
            if check_settings:
                self._compare_settings(owner, folder, run["settings"])
            # Shapes may only differ in the padding of stacks, which orbax adds or leaves away.
            described = saved.to_restore(owner, target, leaves)
            abstract = arguments.StandardRestore(described, strict=False)
            state = reader.restore(folder, args=arguments.Composite(**{_STATE: abstract}))[_STATE]
        self._seen = self._last = number
        state = saved.restored(owner, target, state, leaves)
        return Checkpoint(state, saved.from_json(run["position"]), run["settings"])

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints in the folder, in ascending order."""
        return sorted(found.step for found in self._found() if _is_checkpoint(found.path))

    def latest_step(self) -> int | None:
        """The step of the last complete checkpoint; None: there is none."""
        return max(self.steps(), default=None)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            Exception: what went wrong while it was written, such as an OSError if the disk is full.
        """
        if self._manager is not None:
            try:
                self._manager.wait_until_finished()
            except Exception:
                self._manager = self._seen = self._last = None
                raise
            self._sweep()

    def close(self) -> None:
        """Wait until the last checkpoint is complete, and end the threads that write.

        A program that ends without it waits as well.
        """
        _open.discard(self)
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()
            self._sweep()

    def __enter__(self) -> Self:
        """The object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _new_manager(self, owner: str) -> Any:
        """What writes; it also removes what an interrupted save has left."""
        for found in self._found():
            if not _is_checkpoint(found.path):
                raise ValueError(
                    f"{owner}: directory must be a folder for these checkpoints alone, but "
                    f"'{found.path.name}' in {self.directory} is none"
                )
        self._sweep()
        policies = self._orbax.checkpoint_managers
        return self._orbax.CheckpointManager(
            self.directory,
            options=self._orbax.CheckpointManagerOptions(
                preservation_policy=None if self._keep is None else policies.LatestN(self._keep),
                cleanup_tmp_directories=True,
                todelete_subdir=_DELETED,
            ),
        )

    def _found(self) -> list[Any]:
        """What orbax takes for complete checkpoints."""
        return list(self._orbax.step.standard_name_format().find_all(self.directory))

    def _sweep(self) -> None:
        """Delete the checkpoints that are not kept.

        orbax renames them: one that is half deleted would look complete.
        """
        folder = self.directory / _DELETED
        if jax.process_index() == 0 and folder.exists():
            folder.rmtree(missing_ok=True)

    def _check_free(self, owner: str, number: int) -> None:
        latest = self.latest_step()
        if latest is not None and latest >= number:
            raise ValueError(
                f"{owner}: step must come after those of the checkpoints in {self.directory}, the "
                f"last of which is {latest}, got {number}; go on from that one (`restore`), use "
                "another folder, or delete the later ones"
            )

    def _existing(self, owner: str, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"{owner}: there is no checkpoint in {self.directory}")
        if step is not None and step not in steps:
            raise FileNotFoundError(
                f"{owner}: there is no checkpoint of step {step} in {self.directory}, only of "
                f"{listed(steps)}"
            )
        return steps[-1] if step is None else step

    def _compare_settings(self, owner: str, folder: Any, settings: Any) -> None:
        if settings is None or self._settings is None:
            return
        found = list(saved.other_settings(settings, self._settings))
        if found:
            raise ValueError(
                f"{owner}: settings must be those of the checkpoint {folder}, unless "
                f"check_settings=False:{saved.lines_of(found)}"
            )


# Those that may be writing.
_open: set[Checkpoints] = set()


def _close_at_exit(checkpoints: Checkpoints) -> None:
    """See to it that a program which ends without closing them loses no checkpoint."""
    _open.add(checkpoints)
    _register()


@functools.cache
def _register() -> None:
    # Python takes the threads with which orbax writes away before it calls what `atexit` has; what
    # comes before that has no public name.
    getattr(threading, "_register_atexit", atexit.register)(_close_all)


def _close_all() -> None:
    for checkpoints in list(_open):
        try:
            checkpoints.close()
        except Exception:
            # The others are to be closed as well.
            traceback.print_exc()


def _is_checkpoint(path: Any) -> bool:
    return (path / _STATE).exists() and (path / _RUN).exists()


def _step_of(owner: str, state: Any, step: Any) -> int:
    if step is None:
        step = getattr(state, "step", None)
        if step is None:
            raise ValueError(f"{owner}: state must be a TrainState, or step must be given")
    return int(check(owner, "step", step, COUNT_OR_ZERO))


def _check_dtypes(owner: str, leaves: saved.Leaves) -> None:
    dtype_of = _load("tensorstore").dtype  # what orbax stores arrays with
    for path, leaf in leaves.items():
        try:
            dtype_of("uint32" if leaf.generator else leaf.dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{owner}: state has {leaf} at '{path}': {error}") from error


def _load(module: str) -> ModuleType:
    """Import a module that only checkpoints need."""
    return extras.load(f"gradtx.training.{_OWNER}", module, "checkpoints", "orbax-checkpoint")
