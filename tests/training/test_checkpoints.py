"""Checkpoints: what is saved comes back, in the right place, and nothing else is touched."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx.training import Checkpoints, TrainState, make_train_step, minibatches

RNG = np.random.default_rng(0)
PARAMS = {
    "w": jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32),
    "half": jnp.asarray(RNG.normal(size=(16, 32)), jnp.bfloat16),
    "complex": jnp.asarray(RNG.normal(size=(2, 3)) + 1j, jnp.complex64),
    "integers": jnp.arange(3),
    "nothing": None,
    "empty": jnp.zeros((0, 3)),
    "none of it": {},
}


def loss_fn(params, model_state, batch, key):
    noise = 0.01 * jax.random.normal(key, (4,))
    residual = batch @ params["w"] + noise[None]
    loss = jnp.mean(residual**2) + jnp.mean(params["half"].astype(jnp.float32) ** 2)
    loss += jnp.mean(jnp.abs(params["complex"]) ** 2)
    return loss, {"seen": model_state["seen"] + batch.shape[0]}


def everything():
    """A transformation with most kinds of state."""
    schedule = optax.linear_schedule(0.1, 0.0, 100)
    grouped = gradtx.partition(
        {"w": gradtx.quantize_state(gradtx.adam(schedule)), "rest": gradtx.sgd(0.1, momentum=0.9)},
        gradtx.select.groups({"w": "^w|^half"}, rest="rest"),
    )
    masked = gradtx.masked(gradtx.adafactor(1e-2), gradtx.select("half"))
    hyper = gradtx.with_hyperparams(gradtx.clip_by_global_norm, max_norm=1.0)
    noisy = gradtx.add_noise(0.01, 0.5, jax.random.key(5))
    return gradtx.MultiSteps(
        gradtx.average_params(gradtx.chain(hyper, masked, grouped, noisy), 0.9), 2
    )


def new_state(tx, params=PARAMS):
    keys = jax.random.split(jax.random.key(2, impl="rbg"), 3)
    model_state = {"seen": jnp.int32(0), "keys": keys}
    return TrainState.create(params, tx, model_state, jax.random.key(1))


def small(step=0, **params):
    params = params or {"w": jnp.ones(3)}
    return TrainState.create(params, gradtx.sgd(0.1))._replace(step=jnp.int32(step))


def raw(tree):
    def bits(x):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return np.atleast_1d(np.asarray(x)).view(np.uint8)

    return jax.tree.map(bits, tree)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, expected)
    jax.tree.map(np.testing.assert_array_equal, raw(found), raw(expected))


def test_narrow_dtypes_come_back(tmp_path):
    dtypes = (jnp.int4, jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float16, jnp.bool_, jnp.uint8)
    tree = {dtype.__name__: jnp.asarray(np.array([0, 1, 1]), dtype) for dtype in dtypes}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(tree, step=0)
        assert_same(checkpoints.restore(tree).state, tree)


@pytest.mark.parametrize("kind", ["arrays", "shapes"])
def test_a_run_goes_on_as_if_never_interrupted(tmp_path, kind, compilations):
    tx = everything()

    def loss(params, model_state, batch, key):
        value, new = loss_fn(params, model_state, batch, key)
        return value, {**model_state, **new}

    step = make_train_step(loss, tx, has_model_state=True, has_key=True)
    data = RNG.normal(size=(20, 8)).astype(np.float32)
    state, state_at_3 = new_state(tx), None
    with Checkpoints(tmp_path / "run", every=3) as checkpoints:
        for batch in minibatches(jax.random.key(0), data, 4):
            state, _ = step(state, batch)  # takes over the memory of what is being saved
            checkpoints.save(state)
            if state.step == 3:
                state_at_3 = jax.tree.map(np.asarray, raw(state))
    assert state.step == 5

    target = new_state(tx) if kind == "arrays" else jax.eval_shape(lambda: new_state(tx))
    resumed = Checkpoints(tmp_path / "run").restore(target).state
    jax.tree.map(np.testing.assert_array_equal, raw(resumed), state_at_3)
    compilations.clear()
    for batch in minibatches(jax.random.key(0), data, 4, start=int(resumed.step)):
        resumed, _ = step(resumed, batch)
    assert compilations == []
    assert_same(resumed, state)


def test_a_run_goes_on_on_other_devices(tmp_path):
    tx = gradtx.adam(0.1)
    params = {"w": PARAMS["w"], "v": jnp.arange(16.0)}

    def on(devices, spec):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
        return new_state(tx, jax.device_put(params, NamedSharding(mesh, spec)))

    eight = on(8, PartitionSpec("data"))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(eight)
    one = new_state(tx, params)
    for target in (on(4, PartitionSpec("data")), on(2, PartitionSpec()), one, eight):
        found = checkpoints.restore(target).state
        assert_same(found, eight)
        for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
            assert leaf.committed == wanted.committed
    checkpoints.close()


def test_shapes_say_where_arrays_are_to_lie(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    state = small(w=jnp.arange(16.0), v=jnp.ones(3))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    shapes = jax.eval_shape(lambda: state)
    w = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=sharding)
    found = checkpoints.restore(shapes._replace(params={**shapes.params, "w": w})).state
    assert found.params["w"].sharding == sharding
    np.testing.assert_array_equal(found.params["w"], np.arange(16.0))
    assert not found.params["v"].committed

    abstract = jax.ShapeDtypeStruct(
        (16,), jnp.float32, sharding=NamedSharding(mesh.abstract_mesh, PartitionSpec("data"))
    )
    target = shapes._replace(params={**shapes.params, "w": abstract})
    with pytest.raises(ValueError, match=r"^Checkpoints.restore: .* 'params/w' .* jax.set_mesh"):
        checkpoints.restore(target)
    with jax.set_mesh(mesh):
        assert checkpoints.restore(target).state.params["w"].sharding == sharding


def test_the_state_of_optax_goes_on_with_gradtx(tmp_path):
    params = {"w": jnp.ones(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(TrainState.create(params, optax.adam(0.1)))
        found = checkpoints.restore(TrainState.create(params, gradtx.adam(0.1)))
    assert_same(found.state, TrainState.create(params, gradtx.adam(0.1)))


def test_any_tree_is_saved_with_a_step(tmp_path):
    tree = {"a": 1.5, "b": [np.arange(3, dtype=np.int16), True], "c": np.ones((0, 2))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(tree, step=4)
        found = checkpoints.restore(tree).state
    assert found["a"] == 1.5
    assert found["b"][1] is True
    assert type(found["b"][0]) is np.ndarray
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    with pytest.raises(ValueError, match=r"^Checkpoints.save: state must be a TrainState, or step"):
        checkpoints.save(tree)


def test_the_position_comes_back(tmp_path):
    position = {
        "epoch": 3,
        "share": 0.1 + 0.2,
        "file": "a/b",
        "done": (True, None),
        "order": np.arange(6, dtype=np.int16).reshape(2, 3),
        "half": jnp.ones(2, jnp.bfloat16),
        "empty": np.zeros((0, 2)),
        "key": jax.random.key(3, impl="rbg"),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(small(), position)
        found = checkpoints.restore(small()).position
    assert found["done"] == [True, None]
    assert [found[name] for name in ("epoch", "share", "file")] == [3, 0.1 + 0.2, "a/b"]
    for name in ("order", "half", "empty"):
        assert found[name].dtype == position[name].dtype
        np.testing.assert_array_equal(found[name], position[name])
    assert found["key"].dtype == position["key"].dtype
    np.testing.assert_array_equal(raw(found["key"]), raw(position["key"]))


def test_checkpoints_are_written_every_so_many_steps_and_the_last_ones_kept(tmp_path):
    with Checkpoints(tmp_path, every=10, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        written = [step for step in range(0, 50, 5) if checkpoints.save(small(step))]
        assert written == [0, 10, 20, 30, 40]
        assert not checkpoints.save(small(45))
        assert not checkpoints.save(small(49), force=False)
        # Of calls that pass a multiple by, the next one counts.
        assert checkpoints.save(small(53))
        assert not checkpoints.save(small(59))
        assert checkpoints.save(small(59), force=True)
        assert not checkpoints.save(small(59), force=True)
        checkpoints.wait()
        assert checkpoints.steps() == [53, 59]
        assert checkpoints.latest_step() == 59
    assert sorted(path.name for path in tmp_path.iterdir()) == ["53", "59"]
    with Checkpoints(tmp_path, every=10) as checkpoints:
        assert checkpoints.restore(small()).state.step == 59
        assert not checkpoints.save(small(59), force=True)
        assert checkpoints.save(small(60))
    assert checkpoints.steps() == [53, 59, 60]


def test_nothing_of_another_run_is_mixed_in_or_deleted(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(small(10))
        checkpoints.save(small(20))
    with pytest.raises(ValueError, match=r"^Checkpoints.save: step must .* is 20, got 0; go on"):
        Checkpoints(tmp_path).save(small(0))
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(small(), step=10).state.step == 10
    with pytest.raises(ValueError, match="the last of which is 20, got 15"):
        checkpoints.save(small(15))
    assert checkpoints.steps() == [10, 20]


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "007").mkdir()
    (tmp_path / "pictures").mkdir()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(small(0))
        checkpoints.save(small(1))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"notes.txt", "007", "pictures", "1"}
    (tmp_path / "2024").mkdir()
    assert checkpoints.steps() == [1]
    assert checkpoints.restore(small()).state.step == 1
    with pytest.raises(ValueError, match=r"directory must be a folder for these .*'2024'"):
        checkpoints.save(small(2))


def test_an_incomplete_checkpoint_is_ignored_and_removed_by_the_next_save(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(small(1))
    left = tmp_path / "2.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    deleted = tmp_path / ".deleted" / "0"
    deleted.mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(small()).state.step == 1
        assert left.exists()  # by a process that may still be writing it
        checkpoints.save(small(2))
    assert checkpoints.steps() == [1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


def test_a_relative_folder_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("run/first") as checkpoints:
        monkeypatch.chdir("/")
        checkpoints.save(small())
    assert (tmp_path / "run/first/0/state").is_dir()


UNCLOSED = """
import sys
import jax.numpy as jnp
import gradtx
from gradtx.training import Checkpoints, TrainState

state = TrainState.create({"w": jnp.ones((2000, 2000))}, gradtx.sgd(0.1))
first, second = Checkpoints(sys.argv[1]), Checkpoints(sys.argv[2])
first.save(state, step=3)
second.save(state, step=4)
del second
raise SystemExit("the end")
"""


def test_a_program_that_does_not_close_them_loses_none(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    command = [sys.executable, "-c", UNCLOSED, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (1, ["the end"]), done.stderr
    assert "Traceback" not in done.stderr
    assert [Checkpoints(folder).steps() for folder in folders] == [[3], [4]]


def test_nothing_is_made_by_looking(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.steps() == []
    with pytest.raises(FileNotFoundError, match=r"^Checkpoints.restore: there is no checkpoint"):
        checkpoints.restore(small())
    checkpoints.close()
    assert list(tmp_path.iterdir()) == []
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(small(4))
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 .*, only of \[4\]"):
            checkpoints.restore(small(), step=3)


def test_what_does_not_fit_is_named_by_path(tmp_path):
    state = small(1, w=jnp.ones((4, 3)), b=jnp.ones(2), old=jnp.ones(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        target = small(w=jnp.ones((4, 5)), b=jnp.ones(2, jnp.bfloat16), new=jnp.ones(1))
        with pytest.raises(ValueError, match="target does not fit") as refusal:
            checkpoints.restore(target._replace(key=jax.random.key(0)))
    assert str(refusal.value).split("\n") == [
        f"Checkpoints.restore: target does not fit the checkpoint {tmp_path}/1:",
        "  'params/b': float32[2] in the checkpoint, bfloat16[2] in the target",
        "  'params/old': float32[1] in the checkpoint, nothing in the target",
        "  'params/w': float32[4,3] in the checkpoint, float32[4,5] in the target",
        "  'params/new': nothing in the checkpoint, float32[1] in the target",
        "  'key': nothing in the checkpoint, key<fry>[] in the target",
    ]


def test_a_message_about_a_large_tree_stays_short(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save({f"layer{i}": np.ones(1) for i in range(50)}, step=0)
        with pytest.raises(ValueError, match="and 44 more") as refusal:
            checkpoints.restore({f"layer{i}": np.ones(2) for i in range(50)})
    *lines, advice = str(refusal.value).split("\n")
    assert len(lines) == 8
    assert advice.endswith("carry it over with gradtx.migrate.")


def test_other_settings_are_named(tmp_path):
    settings = {"lr": 0.1, "model": {"width": 8, "act": "relu"}, "axes": (1, 2), "seed": 0}
    with Checkpoints(tmp_path, settings=settings) as checkpoints:
        checkpoints.save(small())
    found = Checkpoints(tmp_path, settings=settings).restore(small())
    assert found.settings == json.loads(json.dumps(settings))
    assert Checkpoints(tmp_path).restore(small()).settings == found.settings
    others = {"lr": 0.2, "model": {"width": 9, "act": "relu"}, "axes": [1, 2], "more": True}
    changed = Checkpoints(tmp_path, settings=others)
    with pytest.raises(ValueError, match=r"^Checkpoints.restore: settings must be") as refusal:
        changed.restore(small())
    assert str(refusal.value).split("\n")[1:] == [
        "  'lr': 0.1 in the checkpoint, 0.2 now",
        "  'model/width': 8 in the checkpoint, 9 now",
        "  'seed': 0 only in the checkpoint",
        "  'more': True only now",
    ]
    assert changed.restore(small(), check_settings=False).settings == found.settings


def test_what_cannot_be_written_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for arguments, message in (
        (({"a": {"b": jax.nn.relu}},), "state must consist of arrays, got <.*> at 'a/b'"),
        (({"a": {"b": 1.0}, "a.b": 2.0},), "state must not have two arrays of one name, got 'a/b'"),
        (
            ({"a": jnp.ones(2, jnp.uint4)},),
            r"state has uint4\[2\] at 'a': No TensorStore data type",
        ),
        ((small(), {"a": [1, {2}]}), "position must .* arrays and PRNG keys, got .2. at 'a/1'"),
        ((small(), {"a": {1: 2}}), "position must consist of .* at 'a'"),
    ):
        with pytest.raises(ValueError, match=f"^Checkpoints.save: {message}"):
            checkpoints.save(*arguments, step=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be a whole number >= 1, got 0"),
        ({"keep": 0}, "keep must be a whole number >= 1, got 0"),
        ({"settings": 3}, "settings must be a dictionary, got 3"),
        ({"settings": {"a": {1}}}, "settings must be values of JSON, got {1} at 'a'"),
        ({"directory": __file__}, "directory must be a folder, got the file "),
    ],
    ids=["every", "keep", "no dictionary", "no JSON", "file"],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=r"^Checkpoints: ") as refusal:
        Checkpoints(**{"directory": tmp_path, **arguments})
    assert message in str(refusal.value)


def test_a_failed_save_is_reported_and_the_next_one_works(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(small(0))
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", full)
            patch.setattr(os, "replace", full)
            assert checkpoints.save(small(1))
            with pytest.raises(OSError, match="No space left"):
                checkpoints.wait()
        assert checkpoints.steps() == [0]
        assert checkpoints.save(small(1))
    assert checkpoints.steps() == [0, 1]


def test_without_orbax_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r'pip install "gradtx\[checkpoints\]"'):
        Checkpoints(tmp_path)


def test_no_file_is_a_pickle(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(new_state(everything()), {"key": jax.random.key(0)})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        # The opcode that a pickle of protocol 2 or later begins with, and that each ends with.
        data = path.read_bytes()
        assert not (data[:1] == b"\x80" and data[-1:] == b"."), path


def test_state_of_another_optimizer_is_for_migrate(tmp_path):
    params = {"w": jnp.ones(2)}
    old, new = gradtx.sgd(0.1, momentum=0.9), gradtx.adam(0.1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(TrainState.create(params, old), step=0)
        with pytest.raises(ValueError, match=r"'opt_state/0/mu/w'[^$]*gradtx\.migrate"):
            checkpoints.restore(TrainState.create(params, new))
        # As the message says.
        state = checkpoints.restore(TrainState.create(params, old)).state
        moved = gradtx.migrate(state.opt_state, new, params)[0]
        jax.block_until_ready(new.update(params, moved, params))
