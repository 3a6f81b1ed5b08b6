"""The command lines: small runs, killed and resumed, and one-line errors."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import xarray

from experiments import _kit, depth_variance
from jaxgrad import plotting, regimes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
SMALL = {"depth": 6, "width": 12, "w_variances": 5, "examples": 8, "seeds": 3}


ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def command(*options, folder):
    return subprocess.run(
        [sys.executable, "-m", "experiments.depth_variance", *map(str, options)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def flags(**options):
    return [
        text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)
    ]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("map") / "small"


@pytest.fixture(scope="module")
def dataset(output):
    return depth_variance.measure(depth_variance.Options(**SMALL, output=output)).load()


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    output = tmp_path_factory.mktemp("map") / "exact"
    return depth_variance.measure(depth_variance.Options(**SMALL, gradient="exact", output=output))


@pytest.mark.slow
def test_another_process_measures_the_same(dataset, tmp_path):
    options = depth_variance.Options(**SMALL, output=tmp_path / "small", workers=1)
    # It has other batches and compiles with optimizations: logs of squares differ by rounding.
    xarray.testing.assert_allclose(depth_variance.measure(options).load(), dataset, atol=1e-4)


def test_workers_and_a_scheduler_are_refused_together(tmp_path):
    options = depth_variance.Options(output=tmp_path / "x", workers=2, scheduler="tcp://a:1")
    with pytest.raises(ValueError, match="workers and scheduler must not both be passed, got 2"):
        options.check()
    assert not list(tmp_path.iterdir())


def test_exact_and_probe_modes_agree(dataset, exact):
    for variable in ("log_activation", "dead", "saturated", "log_profile"):
        np.testing.assert_allclose(exact[variable], dataset[variable], rtol=1e-4, atol=1e-4)
    difference = (exact["log_ratio"] - dataset["log_ratio"]).mean()
    # Over 24 seeds the mean is -0.02 +- 0.04, and the deviation of one seed is 0.22.
    assert abs(float(difference)) < 3 * 0.22 / SMALL["seeds"] ** 0.5
    assert float(np.abs(exact["log_ratio"].sel(depth=1)).max()) < 1e-5


def test_profile_ends_where_the_ratio_says(exact):
    profile = exact["log_profile"]
    ratio = profile.isel(layer=0) - profile.isel(layer=-1)
    np.testing.assert_allclose(ratio, exact["log_ratio"].isel(depth=-1), rtol=1e-4, atol=1e-4)


def test_report_shows_the_level_variance(dataset):
    options = depth_variance.Options(**SMALL)
    texts = [depth_variance.map_table(dataset, name, options) for name in ("tanh", "relu")]
    rows = [t.split() for text in texts for t in text.splitlines() if t.startswith("6 ")]
    assert len(rows) == 2
    level = regimes.level(
        dataset["log_ratio"].sel(activation="relu").values, dataset["w_variance"].values
    )
    assert f"{float(level.variance[-1]):.3f}" in rows[1]


def test_figure_has_words_on_every_axis(dataset):
    figure = plotting.depth_map(dataset)
    *panels, bar = figure.axes
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title() for ax in panels)
    assert bar.get_xlabel() == "gradient, its norm at the first layer over that at the last"
    assert figure.axes[0].collections[0].norm.vmin == -figure.axes[0].collections[0].norm.vmax


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(dataset, tmp_path):
    options = [str(o) for o in flags(**SMALL, ratio=3)]
    results = tmp_path / "results"
    store = results / "depth_variance.zarr" / "computed"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.depth_variance", *options],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(store.glob("c/*/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert list(store.glob("c/*/*"))
    done = command(*options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "relu, weight variance x fan-in" in done.stdout
    assert "level at (±" in done.stdout
    assert "p-values of 2 tests" in done.stdout
    picture = matplotlib.image.imread(results / "depth_variance.png")
    assert picture.shape[0] > 500
    assert (results / "depth_variance.json").is_file()
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50
    with xarray.open_zarr(results / "depth_variance.zarr", chunks=None) as stored:
        assert stored["log_ratio"].dims == ("activation", "seed", "w_variance", "depth")
        assert stored["depth"].values.tolist() == list(range(1, 7))
        assert bool(stored["computed"].all())
        assert stored["w_variance"].attrs["units"] == "1/fan_in"
        for variable in dataset.data_vars:
            np.testing.assert_allclose(stored[variable], dataset[variable], rtol=1e-5, atol=1e-5)


BAD = [
    ({"depth": 0}, "depth must be at least 1, got 0"),
    ({"width": 0}, "width must be at least 1, got 0"),
    ({"width": -3}, "width must be"),
    ({"seeds": 1}, "seeds must be at least 2, got 1"),
    ({"w_variances": 1}, "w_variances must be at least 2"),
    ({"w_variance_min": -1}, "w_variance_min must be above 0, got -1"),
    ({"w_variance_min": 9}, "w_variance_min and w_variance_max must be in this order"),
    ({"w_variance_max": "nan"}, "w_variance_max must be above 0, got nan"),
    ({"b_variance": -0.1}, "b_variance must be at least 0, got -0.1"),
    ({"b_variance": "inf"}, "b_variance must be at least 0, got inf"),
    ({"activations": "swish9"}, "activations must have values one of linear"),
    ({"examples": 0}, "examples must be"),
    ({"examples": 5000}, "examples must be at most the 1797 rows of 'digits', got 5000"),
    ({"data": "mnist"}, "data must be one of digits"),
    ({"data": "nowhere.npy"}, "data must be a file that exists"),
    ({"data": "nan.csv"}, "data must be finite, 'nan.csv' has 1 NaN"),
    ({"data": "words.csv"}, "data must be a table of numbers"),
    ({"data": "flat.npy"}, "data must have shape [examples, features]"),
    ({"ratio": 1}, "ratio must be above 1"),
    ({"z": -1}, "z must be at least 0"),
    ({"memory": 0}, "memory must be at least 1"),
    ({"first_seed": -1}, "first_seed must be"),
    ({"output": "file.txt/map"}, "output must be in a folder that can be written"),
    ({"output": "/proc/nowhere/map"}, "output must be in a folder that can be written"),
    ({"output": "other/map", "depth": 5}, "store"),
    ({"depth": "deep"}, "depth"),
    ({"gradient": "guess"}, "gradient"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, dataset, output):
    """A folder with bad data files and the finished map of another config."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "nan.csv").write_text("1,2\n3,nan\n5,6\n")
    (folder / "words.csv").write_text("a,b\nc,d\n")
    (folder / "file.txt").write_text("")
    np.save(folder / "flat.npy", np.ones(5))
    shutil.copytree(output.with_name("small.zarr"), folder / "other" / "map.zarr")
    return folder


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_bad_input_ends_in_one_line(prepared, monkeypatch, change, message):
    options = [str(option) for option in flags(**SMALL | change)]
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(sys, "argv", ["depth_variance", *options])
    with pytest.raises(SystemExit) as stop:
        _kit.command(depth_variance.Options, depth_variance.run, resumable=True)
    assert isinstance(stop.value.code, str)
    assert "\n" not in stop.value.code
    assert message in stop.value.code
    assert not (prepared / "results").exists()


def test_bad_input_is_printed_without_a_traceback(tmp_path):
    done = command("--depth", "0", folder=tmp_path)
    assert done.returncode != 0
    assert done.stderr == "error: depth must be at least 1, got 0\n"


def test_help_reads_well(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["depth_variance", "--help"])
    with pytest.raises(SystemExit) as stop:
        _kit.command(depth_variance.Options, depth_variance.run, resumable=True)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in ("--depth", "--w-variance-min", "--gradient", "reverse mode"):
        assert name in text
