from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeexport.data import class_names, data_identity, open_samples, read_raw
from edgeexport.errors import DataError, RecipeError, RequestError
from edgeexport.records.base import file_digest
from edgeexport.records.recipe import DataSpec, ModelSpec, Recipe
from tests.data.conftest import MakeRecipe, picture, pictures, write_zip


def test_an_npz_gives_inputs_and_labels(tmp_path: Path, recipe: MakeRecipe) -> None:
    np.savez(tmp_path / "a.npz", X=np.arange(6.0).reshape(3, 2), y=np.array([2, 1, 0]))
    samples = open_samples("a.npz", recipe())
    assert len(samples) == 3
    assert samples[1][0].tolist() == [2.0, 3.0]
    assert samples[1][1] == 1


def test_an_npz_with_several_inputs_gives_them_by_name(tmp_path: Path, recipe: MakeRecipe) -> None:
    np.savez(tmp_path / "a.npz", ids=np.zeros((2, 4), np.int64), mask=np.ones((2, 4)), labels=np.zeros(2))
    assert set(open_samples("a.npz", recipe())[0][0]) == {"ids", "mask"}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 2))}, "has no labels"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(3)}, "unlike length"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "holds no samples"),
        ({"x": np.array([{}, {}], dtype=object), "y": np.zeros(2)}, "plain arrays"),
        ({"x": np.array(["a", "b"]), "y": np.zeros(2)}, "expected numbers"),
        ({"y": np.zeros(2)}, "holds no inputs"),
        ({"x": np.zeros(2), "y": np.zeros(2), "labels": np.zeros(2)}, "several arrays could be the labels"),
    ],
)
def test_an_npz_that_cannot_be_samples_is_refused(
    tmp_path: Path, recipe: MakeRecipe, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_samples("a.npz", recipe())


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no zip", b"\x93NUMPY\1\0", b"text"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, recipe: MakeRecipe, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz"):
        open_samples("a.npz", recipe())


def test_calibration_arrays_need_no_labels(tmp_path: Path, recipe: MakeRecipe) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)))
    assert open_samples("a.npz", recipe(), labelled=False)[1][1] is None


@pytest.mark.parametrize(("name", "message"), [("no.zip", "no such file"), ("a.txt", "not a source of samples")])
def test_what_is_no_source_is_named(tmp_path: Path, recipe: MakeRecipe, name: str, message: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        open_samples(name, recipe())


def test_paths_expand_variables(tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "p.zip", pictures("p", range(4)))
    monkeypatch.setenv("WHERE", str(tmp_path))
    assert len(open_samples("$WHERE/p.zip", recipe())) == 4
    assert len(open_samples("${NOT_SET_HERE:-.}/p.zip", recipe())) == 4


def test_a_function_gives_samples(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "own.py").write_text("def train():\n    return [([1.0, 2.0], 0), ([3.0, 4.0], 1)]\n")
    arrays, target = read_raw(open_samples("own:train", recipe()), 1)
    assert (arrays[""].tolist(), target) == ([3.0, 4.0], 1)


def test_live_sequences_and_callables_are_taken(recipe: MakeRecipe) -> None:
    rows = [(np.zeros(3), 0)]
    assert len(open_samples(rows, recipe())) == len(open_samples(lambda: rows, recipe())) == 1


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("return 5", DataError, "a int is no source"),
        ("return []", DataError, "no samples"),
        ("return [1]", DataError, "expected the pair"),
        ("raise KeyError('x')", RequestError, "own.py:2: KeyError"),
        ("return [(['a'], 0)]", DataError, "expected numbers"),
        ("return [([1.0, float('nan')], 0)]", DataError, r"sample 0: nan at \(1,\); 1 of 2"),
        ("return [({}, 0)]", DataError, "no inputs"),
    ],
)
def test_functions_that_give_no_samples_are_refused(
    tmp_path: Path, recipe: MakeRecipe, body: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "own.py").write_text(f"def train():\n    {body}\n")
    with pytest.raises(error, match=message):
        read_raw(open_samples("own:train", recipe()), 0)


def test_an_error_in_a_users_getitem_names_sample_file_and_line(tmp_path: Path, recipe: MakeRecipe) -> None:
    text = "class S:\n    def __len__(self): return 9\n    def __getitem__(self, i):\n        return self.gone[i]\n"
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(RequestError, match=r"sample 3: .*own.py:4: AttributeError"):
        open_samples("own:S", recipe())[3]


def test_one_bad_value_in_many_is_found_with_its_sample(recipe: MakeRecipe) -> None:
    rows = [(np.full(4, i, np.float32), 0) for i in range(64)]
    rows[41][0][2] = np.inf
    samples = open_samples(rows, recipe())
    with pytest.raises(DataError, match="sample 41: inf"):
        [read_raw(samples, index) for index in range(len(samples))]


def test_class_files_number_the_folders(tmp_path: Path, recipe: MakeRecipe) -> None:
    write_zip(tmp_path / "p.zip", pictures("p", range(4)))
    (tmp_path / "classes.txt").write_text("1 cat tabby cat\n0 dog a dog\n2 bird\n")
    chosen = recipe(pool="p.zip", classes="classes.txt")
    samples = open_samples("p.zip", chosen)
    assert [samples[i][1] for i in range(4)] == [1, 1, 0, 0]
    assert class_names(chosen) == ("a dog", "tabby cat", "bird")


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat\n", "class 'dog' is not among"), ("0 cat x\n2 dog x\n", "not 0 to 1"), ("cat\ncat\n", "twice"), ("", "no")],
)
def test_class_files_that_do_not_fit_are_refused(tmp_path: Path, recipe: MakeRecipe, text: str, message: str) -> None:
    write_zip(tmp_path / "p.zip", pictures("p", range(2)))
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_samples("p.zip", recipe(classes="classes.txt"))


def test_class_names_come_from_folders_sets_or_nowhere(tmp_path: Path, recipe: MakeRecipe) -> None:
    write_zip(tmp_path / "p.zip", pictures("p", range(2)))
    assert class_names(recipe(pool="p.zip")) == ("cat", "dog")
    assert class_names(recipe(pool="digits"))[3] == "3"
    assert class_names(recipe(train="gone:never_imported", evaluate="gone:f")) == ()


def test_a_preprocessing_without_samples_is_no_source(recipe: MakeRecipe) -> None:
    with pytest.raises(DataError, match="names a preprocessing only"):
        open_samples("cifar10", recipe())


def test_a_missing_variable_is_named(recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="NOT_SET_HERE"):
        open_samples("$NOT_SET_HERE/x.zip", recipe())


def test_a_folder_reads_like_the_zip_of_it(tmp_path: Path, recipe: MakeRecipe) -> None:
    members = pictures("p", range(4)) | {"p/notes.txt": b"x"}
    write_zip(tmp_path / "p.zip", members)
    for name, content in members.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "p/cat/.hidden.png").write_bytes(picture(9))
    one, other = open_samples("p", recipe()), open_samples("p.zip", recipe())
    assert len(one) == len(other) == 4
    for index in range(4):
        assert np.array_equal(one[index][0], other[index][0])
        assert one[index][1] == other[index][1]


def labelled(path: Path, content: bytes | None) -> Recipe:
    if content is not None:
        (path / "names.txt").write_bytes(content)
    return Recipe(ModelSpec(onnx="m.onnx", labels="names.txt"), data=DataSpec(pool="digits"), folder=str(path))


def test_labels_of_the_model_come_before_those_of_the_data(tmp_path: Path) -> None:
    assert class_names(labelled(tmp_path, b"\xef\xbb\xbfcrane \r\nblue jay\r\ncrane\n\n")) == (
        "crane",
        "blue jay",
        "crane",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "not readable"), (b"", "no names"), (b"a\n\nb\n", "line 2 is empty"), (b"\xff", "decode")],
)
def test_labels_that_cannot_be_read_are_refused_before_samples_are(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    with pytest.raises(DataError, match=rf"`model\.labels`: .*names\.txt.*{said}"):
        data_identity(labelled(tmp_path, content), file_digest)
