"""Ids of images: the caller's column, a function, or positions."""

import numpy as np
import pytest

from journey.data.ids import check_ids, ids_of


class Table:
    """The part of a table of the library ``datasets`` that is asked for ids."""

    def __init__(self, **columns):
        self.columns = columns
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.columns
        raise AssertionError("an item was decoded")

    def select_columns(self, names):
        return Table(**{name: self.columns[name] for name in names})


def test_images_without_ids_are_counted():
    assert ids_of([{"image": 1}, {"image": 2}]) == [0, 1]
    assert ids_of(np.zeros((3, 1, 2, 2))) == [0, 1, 2]


@pytest.mark.parametrize("key", ["id", "__key__", "file_name"])
def test_a_column_of_ids_is_found_without_decoding(key):
    assert ids_of(Table(image=["x", "y"], **{key: ["b", "a"]})) == ["b", "a"]
    assert ids_of([{key: 7}, {key: 3}]) == [7, 3]


def test_the_callers_column_or_function_wins():
    items = [{"id": 1, "sku": "u"}, {"id": 2, "sku": "v"}]
    assert ids_of(items, "sku") == ["u", "v"]
    assert ids_of(items, lambda item: item["id"] * 10) == [10, 20]
    with pytest.raises(ValueError, match="id_of must be one of the columns id, sku, got 'skew'"):
        ids_of(items, "skew")


def test_an_item_without_the_id_that_others_have_is_refused():
    with pytest.raises(ValueError, match=r"dataset\[1\] must be a dict with the key 'id'"):
        ids_of([{"id": 1}, {}])


def test_numpy_integers_become_plain_ones():
    found = check_ids(np.array([5, 6], dtype=np.uint8))
    assert found == [5, 6]
    assert all(type(i) is int for i in found)


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        (["a", "b", "a"], ValueError, "every image once, got 'a'"),
        ([1, "1"], TypeError, "all integers or all strings, got 1 and '1'"),
        ([True], TypeError, "got True"),
        ([1.0], TypeError, "got 1.0"),
        ([2**63], ValueError, "64 bits"),
        ([""], ValueError, "1 to 1024 bytes"),
        (["x" * 1025], ValueError, "1 to 1024 bytes"),
        (["\ud800"], ValueError, "UTF-8"),
        (["a\0"], ValueError, "NUL"),
    ],
)
def test_wrong_ids_are_refused_by_name(ids, error, text):
    with pytest.raises(error, match=text):
        check_ids(ids)
