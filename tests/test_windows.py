"""minibert/data/windows.py: the bundled motion data, windows of one's own, and how a window becomes a text."""

import hashlib
import json
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from minibert.config import TrainConfig
from minibert.data import windows
from minibert.data.table import Table
from minibert.data.windows import ACTIVITIES, MOTION, Encoding, choose_channels, read_motion, read_windows, shorten
from minibert.errors import InputError

TEST, VAL = {2, 4, 9, 10, 12}, {13, 18, 20, 24}
PEOPLE = {"train": set(range(1, 31)) - TEST - VAL, "val": VAL, "test": TEST}


@pytest.fixture(scope="module")
def motion():
    return read_motion()


@pytest.fixture(scope="module")
def overlap():
    return read_motion(overlap=True)


@pytest.fixture
def save(tmp_path):
    """Write an .npz, by default one of 6 good windows, and give its path."""

    def write(**changes):
        arrays = {"x": np.arange(48.0).reshape(6, 4, 2), "y": np.array(list("ababab"))} | changes
        np.savez(tmp_path / "own.npz", **{name: array for name, array in arrays.items() if array is not None})
        return tmp_path / "own.npz"

    return write


def encoding(kind, ranges, steps=2, bins=10):
    places = list(range(len(ranges)))
    names = [f"c{i}" for i in places]
    return Encoding(kind, steps, places, names, np.array(ranges, float), bins, names)


# The bundled data


def test_motion_has_its_windows(motion, overlap):
    assert Counter(motion.splits) == {"train": 3851, "val": 752, "test": 806}
    assert motion.windows.shape == (5409, 32, 6)
    assert motion.windows.dtype == np.float32
    assert len(motion.labels) == len(motion.groups) == 5409
    assert len(overlap.labels) == len(overlap.windows) == len(overlap.splits) == 10_411
    assert (motion.name, overlap.name) == ("motion", "motion-overlap")


def test_people_of_each_split(motion, overlap):
    for table in (motion, overlap):
        for split, people in PEOPLE.items():
            assert {int(g) for g, s in zip(table.groups, table.splits) if s == split} == people


def test_six_labels_in_their_order(motion):
    labels = sorted(set(motion.labels), key=motion.label_order)
    assert labels == ["walking", "walking upstairs", "walking downstairs", "sitting", "standing", "lying"]
    assert labels == list(ACTIVITIES)


def test_motion_is_in_g_under_the_right_labels(motion):
    """Gravity lies along x while one stands or walks, and not while one lies; who walks shakes more than who sits."""
    assert motion.windows[0, 0].tolist() == pytest.approx([1.021, -0.125, 0.105, 0.005, -0.002, -0.001], abs=1e-6)
    assert motion.labels[0] == "standing"
    labels = np.array(motion.labels)
    gravity = {name: motion.windows[labels == name][:, :, 0].mean() for name in ACTIVITIES}
    shaking = {name: motion.windows[labels == name][:, :, 0].std(axis=1).mean() for name in ACTIVITIES}
    assert gravity["standing"] == pytest.approx(1, abs=0.05)
    assert gravity["walking"] == pytest.approx(1, abs=0.05)
    assert abs(gravity["lying"]) < 0.3
    assert min(shaking[name] for name in ACTIVITIES[:3]) > 0.1 > 0.02 > max(shaking[name] for name in ACTIVITIES[3:])


def test_motion_has_no_window_that_overlaps_another(motion, overlap):
    """The smaller set is the even windows of the larger: each stretch's first, third, ..."""
    kept, every = motion.windows[:, :, 0], overlap.windows[:, :, 0]
    assert {row.tobytes() for row in kept} < {row.tobytes() for row in every}
    shared = lambda x: (x[:-1, 16:] == x[1:, :16]).all(axis=1).sum()  # noqa: E731  a hop is half a window
    assert shared(every) > 8000
    assert shared(kept) == 0


def test_motion_is_hashed_and_named(motion):
    assert motion.sha256 == hashlib.sha256(MOTION.read_bytes()).hexdigest()
    assert motion.channels == ["acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z"]
    assert motion.ranges.tolist() == [[-2, 2]] * 3 + [[-5, 5]] * 3


def test_motion_as_levels_of_the_accelerometer(motion):
    fitted = Encoding.fit(TrainConfig(), motion, np.arange(10))
    text = fitted.texts(motion.windows[:1])[0]
    means = motion.windows[0, :, :3].astype(float).reshape(16, 2, 3).mean(axis=1)
    assert text == " ".join(str(int((v + 2) / 4 * 100)) for v in means.T.ravel())
    assert fitted.describe() == "acc-x,acc-y,acc-z as levels, 16 steps"


# Windows of one's own


def test_two_arrays_are_enough(save):
    path = save(y=np.array([10, 2, 10, 2, 10, 2]))
    table = read_windows(path)
    assert table.windows.tolist() == np.arange(48.0).reshape(6, 4, 2).tolist()
    assert table.labels == ["10", "2"] * 3
    assert sorted(set(table.labels), key=table.label_order) == ["2", "10"]
    assert table.channels == ["channel-1", "channel-2"]
    assert (table.groups, table.splits, table.texts, table.ranges) == (None,) * 4
    assert table.name == "own.npz"
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_optional_arrays(save):
    splits = ["train", "train", "val", "val", "test", "test"]
    table = read_windows(save(group=np.arange(6), split=np.array(splits), channels=np.array(["heart", "breath"])))
    assert table.groups == ["0", "1", "2", "3", "4", "5"]
    assert table.splits == splits
    assert table.channels == ["heart", "breath"]


@pytest.mark.parametrize("letter", [0x110000, 0xFFFFFFFF, 0xD800])
@pytest.mark.parametrize("array", ["y", "group"])
def test_characters_that_unicode_does_not_have(save, array, letter):
    """numpy holds 32 bits for each; Python then has no letter for it, or UTF-8 no bytes."""
    names = np.array(list("abcdef"))
    names.view(np.uint32)[3] = letter
    with pytest.raises(InputError, match="not a readable .npz"):
        read_windows(save(x=np.zeros((6, 4, 2)), **({"y": np.arange(6)} | {array: names})))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.float16, np.float32])
def test_numbers_of_any_kind(save, dtype):
    table = read_windows(save(x=np.arange(48).reshape(6, 4, 2).astype(dtype)))
    assert table.windows.dtype == (np.float64 if dtype == np.int64 else np.float32)
    assert table.windows[5, 3, 1] == 47


def test_digits_that_float32_has_no_room_for_are_kept(save):
    x = 1e6 + 1e-3 * np.random.default_rng(0).random((60, 4, 2))
    assert len(np.unique(x.astype(np.float32))) == 1
    table = read_windows(save(x=x, y=np.array(list("ab") * 30)))
    fitted = Encoding.fit(TrainConfig(steps=4), table, np.arange(60))
    texts = fitted.texts(table.windows)
    assert len(set(texts)) == 60
    again = fitted.texts(read_windows(save(x=x - 1e6, y=np.array(list("ab") * 30))).windows)
    assert set(again) == {" ".join(["0"] * 8)}  # another range: all below it


def test_an_archive_that_unpacks_to_very_much_is_refused_before_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "MOST_BYTES", 10**6)
    np.savez_compressed(tmp_path / "own.npz", x=np.zeros((400_000, 2, 2), np.float32), y=np.zeros(400_000, np.int8))
    assert (tmp_path / "own.npz").stat().st_size < 20_000
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", None)
    with pytest.raises(InputError, match=r"own\.npz: its arrays have 6,800,256 bytes unpacked; 1,000,000 are the most"):
        read_windows(tmp_path / "own.npz")


def test_blanks_around_a_name_do_not_make_a_class(save):
    table = read_windows(save(y=np.array(["a", " a", "b"] * 2), group=np.array(["p", "p ", "q"] * 2)))
    assert (set(table.labels), set(table.groups)) == ({"a", "b"}, {"p", "q"})


def ragged():
    x = np.empty(6, object)
    x[:] = [np.zeros((3 + i % 2, 2)) for i in range(6)]
    return x


def spoiled(value):
    x = np.zeros((6, 4, 2))
    x[3, 2, 1] = value
    return x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": None}, "no array 'x'; found y"),
        ({"y": None}, "no array 'y'; found x"),
        ({"x": None, "y": None}, "no array 'x'; found nothing"),
        ({"x": spoiled(np.nan)}, r"x\[3, 2, 1\] is nan"),
        ({"x": spoiled(-np.inf)}, r"x\[3, 2, 1\] is -inf"),
        ({"x": ragged()}, "x is ragged or holds objects; .*windows of the same length"),
        ({"y": np.array(["a", None] * 3)}, "y is ragged or holds objects; .*or strings"),
        ({"x": np.zeros((6, 4))}, r"x is float64 of shape \(6, 4\); .*\(windows, steps, channels\)"),
        ({"x": np.zeros((6, 4, 2, 1))}, r"shape \(6, 4, 2, 1\)"),
        ({"x": np.zeros((0, 4, 2)), "y": np.array([])}, r"shape \(0, 4, 2\)"),
        ({"x": np.full((6, 4, 2), "1")}, "x is <U1"),
        ({"x": np.zeros((6, 4, 2), complex)}, "x is complex128"),
        ({"y": np.array(list("abab"))}, r"y has shape \(4,\); with 6 windows it must be \(6,\)"),
        ({"y": np.zeros((6, 1))}, r"y has shape \(6, 1\)"),
        ({"group": np.arange(5)}, r"group has shape \(5,\)"),
        ({"split": np.array(["train"] * 7)}, r"split has shape \(7,\)"),
        ({"channels": np.array(["a", "a"])}, "channels must be 2 different names; got a, a"),
        ({"channels": np.array(["a", "b", "c"])}, "channels must be 2 different names; got a, b, c"),
    ],
)
def test_arrays_that_do_not_fit(save, changes, words):
    with pytest.raises(InputError, match=rf"own\.npz: .*{words}"):
        read_windows(save(**changes))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04", None])
def test_unreadable_file(save, content):
    path = save()
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError, match=r"own\.npz is not a readable \.npz"):
        read_windows(path)


@pytest.mark.parametrize("spoiled", [b"\x93NUMPY\x01\x00\x08\x00{'a': (\n", b"\x93NUMPY\x09\x09", b"\x93NUM"])
def test_array_with_a_spoiled_head(tmp_path, spoiled):
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("y.npy", spoiled)
        archive.writestr("x.npy", spoiled)
    with pytest.raises(InputError, match=r"own\.npz is not a readable \.npz"):
        read_windows(tmp_path / "own.npz")


def test_compressed_array_with_a_spoiled_byte(tmp_path):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(60, 4, 2)), y=np.arange(60) % 2)
    content = bytearray(path.read_bytes())
    content[60:90] = b"\xff" * 30
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"own\.npz is not a readable \.npz"):
        read_windows(path)


def test_single_array_under_the_name_of_an_archive(tmp_path):
    with open(tmp_path / "own.npz", "wb") as file:
        np.save(file, np.zeros((6, 4, 2)))
    with pytest.raises(InputError, match=r"own\.npz is not a readable \.npz"):
        read_windows(tmp_path / "own.npz")


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match=r"no\.npz: no such file"):
        read_windows(tmp_path / "no.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match=r"folder\.npz: no such file"):
        read_windows(tmp_path / "folder.npz")


# Channels


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        (None, [0, 1, 2]),
        ("acc", [0, 1, 2]),
        ("gyro", [3, 4, 5]),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("gyro-z", [5]),
        ("gyro-z, acc-x", [5, 0]),
        ("gyro,acc-y", [3, 4, 5, 1]),
    ],
)
def test_channels_of_motion(motion, wanted, places):
    assert choose_channels(wanted, motion) == places


def test_own_windows_are_used_whole(save):
    assert choose_channels(None, read_windows(save(channels=np.array(["acc-x", "heart"])))) == [0, 1]


@pytest.mark.parametrize("wanted", ["ac", "acc-", "acc-w", "x", "acc,,gyro", "acc,"])
def test_unknown_channel(motion, wanted):
    with pytest.raises(InputError, match=r"--channels .*: no channel '.*'; motion has acc-x, acc-y"):
        choose_channels(wanted, motion)


@pytest.mark.parametrize("wanted", ["acc,acc-x", "gyro-x,gyro-x", "all,acc"])
def test_channel_named_twice(motion, wanted):
    with pytest.raises(InputError, match=r"--channels .*named twice"):
        choose_channels(wanted, motion)


def test_chosen_channels_keep_their_ranges_and_values():
    windows = np.stack([np.full((2, 4), value) for value in (1.0, 20.0, 300.0)], axis=2)
    table = Table(
        "t", ["a", "b"], "", windows=windows, channels=list("pqr"), ranges=np.array([[0, 2], [0, 80], [0, 400]])
    )
    fitted = Encoding.fit(TrainConfig(channels="r,p", steps=1), table, np.array([0]))
    assert fitted.texts(windows) == ["75 50"] * 2
    assert fitted.names == ["r", "p"]


# Encodings


def test_levels_go_from_0_to_99_and_are_clipped():
    x = np.array([-9, -2, -1.97, -1.95, 0, 1.95, 1.97, 2, 9.0])
    assert encoding("levels", [(-2, 2)], steps=9).texts(x[None, :, None]) == ["0 0 0 1 50 98 99 99 99"]


def test_levels_are_written_channel_after_channel():
    x = np.array([[[0, 9], [1, 8], [2, 7]], [[3, 6], [4, 5], [5, 4.0]]])
    texts = encoding("levels", [(0, 100), (0, 10)], steps=3).texts(x)
    assert texts == ["0 1 2 90 80 70", "3 4 5 60 50 40"]


def test_values_are_averaged_before_they_are_written():
    x = np.array([0, 10, 30, 50.0])[None, :, None]
    assert encoding("levels", [(0, 100)]).texts(x) == ["5 40"]


def test_decimals_suit_the_range():
    x = np.array([[[1.2345, -12.345, 0.0123456, 150.6], [-1.1, 3.0, -0.02, -7.2]]])
    texts = encoding("decimals", [(-2, 2), (-20, 20), (-0.02, 0.03), (-200, 200)]).texts(x)
    assert texts == ["1.23 -1.10 -12.3 3.0 0.0123 -0.0200 151 -7"]


def test_decimals_are_not_clipped():
    assert encoding("decimals", [(-2, 2)], steps=1).texts(np.full((1, 1, 1), 7.5)) == ["7.50"]


def test_first_channel_of_a_cell_counts_fastest():
    x = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [9, 9, 9], [3, 2, 1], [-5, 99, 0.0]]])
    texts = encoding("grid", [(0, 10)] * 3, steps=7, bins=10).texts(x)
    assert texts == ["0 1 10 100 999 123 90"]


def test_100000_cells_of_three_channels_are_46_a_side_and_can_be_told_back(motion):
    config = TrainConfig(encoding="grid", grid_cells=100_000, steps=32)
    fitted = Encoding.fit(config, motion, np.arange(10))
    assert fitted.bins == 46
    assert fitted.describe() == "acc-x,acc-y,acc-z as grid of 97,336 cells, 32 steps"
    cells = np.random.default_rng(0).choice(46**3, (500, 32))
    cells[0, :2] = 0, 46**3 - 1
    place = np.stack([cells // 46**i % 46 for i in range(3)], axis=2)
    windows = np.zeros((500, 32, 6))
    windows[:, :, :3] = -2 + 4 * (place + 0.5) / 46  # the middle of each cell
    told = [[int(word) for word in text.split()] for text in fitted.texts(windows)]
    assert told == cells.tolist()


@pytest.mark.parametrize(
    ("channels", "cells", "side"),
    [("acc", 1000, 10), ("acc", 999, 9), ("acc", 8, 2), ("acc-x", 1000, 1000), ("acc-x,acc-y", 1000, 31),
     ("all", 10**6, 10), ("acc", 10**12, 10**4)],
)  # fmt: skip
def test_cells_along_a_side(motion, channels, cells, side):
    config = TrainConfig(encoding="grid", channels=channels, grid_cells=cells)
    assert Encoding.fit(config, motion, np.arange(10)).bins == side


@pytest.mark.parametrize(("channels", "cells", "least"), [("acc", 7, 8), ("all", 63, 64), ("acc-x", 1, 2)])
def test_a_grid_without_two_cells_a_side(motion, channels, cells, least):
    with pytest.raises(InputError, match=f"--grid-cells {cells}: .*at least {least};"):
        Encoding.fit(TrainConfig(encoding="grid", channels=channels, grid_cells=cells), motion, np.arange(10))


def test_cells_do_not_matter_to_other_encodings(motion):
    Encoding.fit(TrainConfig(encoding="levels", grid_cells=1), motion, np.arange(10))


def test_more_steps_than_a_window_has(motion):
    assert Encoding.fit(TrainConfig(steps=32), motion, np.arange(10)).steps == 32
    with pytest.raises(InputError, match="--steps 33: the windows of motion have 32 steps"):
        Encoding.fit(TrainConfig(steps=33), motion, np.arange(10))


def test_ranges_come_from_the_training_rows_alone(save):
    x = np.zeros((6, 4, 2))
    x[1, 0] = -1, 10
    x[3, 2] = 3, 50
    x[4, 1] = 100, 1000
    x[5, 3] = -100, -1000
    table = read_windows(save(x=x))
    fitted = Encoding.fit(TrainConfig(steps=4), table, np.array([1, 3]))
    assert fitted.ranges.tolist() == [[-1, 3], [0, 50]]
    assert fitted.texts(table.windows[4:]) == ["25 99 25 25 0 99 0 0", "25 25 25 0 0 0 0 0"]


@pytest.mark.filterwarnings("error")
def test_an_encoding_survives_json_to_the_last_bit():
    ranges = np.random.default_rng(0).normal(size=(2, 2))
    one = encoding("decimals", ranges)
    again = Encoding.from_dict(json.loads(json.dumps(one.to_dict())))
    assert np.array_equal(again.ranges, ranges)
    assert replace(again, ranges=one.ranges) == one


@pytest.mark.parametrize(("shape", "said"), [((3, 4, 3), "3 channels; .* on 2, c0, c1"), ((3, 1, 2), "at least 2")])
def test_windows_that_do_not_suit_an_encoding(shape, said):
    with pytest.raises(InputError, match=said):
        encoding("levels", [(0, 1), (0, 1)]).check(np.zeros(shape), "new.npz")


def test_a_channel_that_never_changes_is_level_0():
    x = np.full((1, 2, 1), 0.7)
    assert encoding("levels", [(0.7, 0.7)]).texts(x) == ["0 0"]
    assert encoding("grid", [(0.7, 0.7)]).texts(x) == ["0 0"]


@pytest.mark.parametrize(
    ("length", "steps"), [(32, 16), (32, 32), (32, 1), (32, 5), (32, 31), (7, 3), (10, 7), (10, 4), (1, 1), (129, 16)]
)
def test_shorten_is_the_mean_of_even_runs(length, steps):
    x = np.random.default_rng(length).normal(size=(3, length, 2))
    expected = np.zeros((3, steps, 2))
    sizes = []
    for window in range(3):
        for channel in range(2):
            for step in range(steps):
                run = [
                    x[window, t, channel]
                    for t in range(length)
                    if step * length < (t + 1) * steps <= (step + 1) * length
                ]
                # the values whose right ends lie in ((step, step + 1] / steps) of the window
                sizes.append(len(run))
                expected[window, step, channel] = sum(run) / len(run)
    assert max(sizes) - min(sizes) <= 1
    np.testing.assert_allclose(shorten(x, steps), expected, atol=1e-12)


def test_names_may_be_bytes_and_one_channel_needs_no_list(save):
    table = read_windows(save(x=np.zeros((6, 4, 1)), y=np.array([b"a", b"\xc3\xa9"] * 3), channels=np.array("heart")))
    assert table.labels == ["a", "é"] * 3
    assert table.channels == ["heart"]


def test_arrays_of_other_names_are_left_alone(save):
    assert read_windows(save(notes=np.array(["a", None, 3]))).channels == ["channel-1", "channel-2"]


@pytest.mark.parametrize("y", [np.array([0.0, 1.0, np.nan] * 2), np.array(["a", "b", ""] * 2)])
def test_windows_without_a_label(save, y):
    with pytest.raises(InputError, match=r"own\.npz: y has an empty name or NaN"):
        read_windows(save(y=y))


@pytest.mark.parametrize("array", ["group", "split"])
def test_windows_with_a_group_or_split_that_is_no_name(save, array):
    with pytest.raises(InputError, match=rf"own\.npz: {array} has an empty name or NaN"):
        read_windows(save(**{array: np.array([0.0, np.nan, 1.0] * 2)}))


@pytest.mark.filterwarnings("error")
def test_numbers_too_large_for_single_precision(save):
    with pytest.raises(InputError, match=r"x\[3, 2, 1\] is 1e\+300"):
        read_windows(save(x=spoiled(1e300)))


def test_decimals_of_a_channel_that_never_changes():
    assert encoding("decimals", [(0.7, 0.7)]).texts(np.full((1, 2, 1), 0.7)) == ["0.70 0.70"]


@pytest.mark.parametrize(
    "change",
    [{"kind": "words"}, {"steps": 0}, {"steps": 2.0}, {"places": [2]}, {"places": [-1]}, {"places": []},
     {"names": ["x"]},
     {"ranges": [[0, 1]]}, {"ranges": [[0, float("inf")]] * 2}, {"ranges": "x"}, {"bins": 0}, {"bins": 10**30},
     {"channels": None}, {"more": 1}],
)  # fmt: skip
def test_an_encoding_that_no_run_has(change):
    content = encoding("levels", [(0, 1), (0, 1)]).to_dict()
    Encoding.from_dict(content)
    with pytest.raises(InputError, match="an encoding of windows that no run has"):
        Encoding.from_dict(content | change)


def test_cells_are_never_negative(motion):
    """From 2 ** 63 on they were."""
    fitted = Encoding.fit(TrainConfig(encoding="grid", channels="acc-x", grid_cells=10**15), motion, np.arange(10))
    assert min(int(word) for text in fitted.texts(motion.windows[:50]) for word in text.split()) >= 0
    with pytest.raises(InputError, match="--grid-cells 9223372036854775808: it must be at most 1,000,000,000,000,000"):
        TrainConfig(encoding="grid", grid_cells=2**63)
