import pickle
import string

import pytest

from tunesmith import errors
from tunesmith.errors import TunesmithError

KINDS = sorted(errors._by_code().values(), key=lambda k: k.code)


def fields_of(kind: type[TunesmithError]) -> dict[str, str]:
    return {name: "value" for _, name, _, _ in string.Formatter().parse(kind.__doc__ or "") if name}


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.code)
def test_every_error_is_a_sentence_and_crosses_processes(kind: type[TunesmithError]) -> None:
    error = kind(**fields_of(kind))
    assert (
        str(error).endswith((".", "?", ")", "]'", "value"))
        and "\n" not in str(error)
        and "{" not in str(error).replace('{"', "")
    )
    for again in (errors.from_json(error.to_json()), pickle.loads(pickle.dumps(error))):
        assert type(again) is kind and str(again) == str(error)


def test_long_values_are_shortened_in_the_sentence_and_kept_in_the_fields() -> None:
    error = errors.QueryFailed(part="training", reason="x", query="SELECT " + "a" * 5000)
    assert len(str(error)) < 500 and len(error.fields["query"]) > 5000


def test_the_nearest_name_is_found_whatever_its_case() -> None:
    assert errors.closest("TUNESMITH-TINI", ["mistral-7b", "tunesmith-tiny"]) == "tunesmith-tiny"
    assert errors.closest("x", []) == "(there are none)"
