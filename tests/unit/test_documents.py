"""Documents of a bounded size: what is refused while it is read, and how values are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raylab.clusters import check_file
from raylab.config import apply_pairs, read_yaml, run_config
from raylab.config.parse import load_yaml
from raylab.config.tuning import tuning_config
from raylab.documents import MOST_DEPTH, BoundedLoader, documents, one_document, shown
from raylab.errors import ConfigError
from raylab.records import RunFolder, Storage

pytestmark = pytest.mark.unit

DOUBLED = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
"""Eight x where four lines stand; a limit of 50 characters lets the text pass, not what it says."""


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedLoader, "most_characters", 50)
    monkeypatch.setattr(BoundedLoader, "most_depth", 4)


def test_aliases_mean_the_value_that_they_stand_for() -> None:
    assert one_document(DOUBLED)["c"] == [[["x", "x"]] * 2] * 2


@pytest.mark.usefixtures("narrow")
def test_an_alias_counts_as_much_as_what_it_stands_for() -> None:
    assert len(DOUBLED) < BoundedLoader.most_characters
    with pytest.raises(yaml.YAMLError, match="at most 50 characters, with its aliases"):
        one_document(DOUBLED)
    # A merge takes what is merged, too.
    with pytest.raises(yaml.YAMLError, match="at most 50 characters"):
        one_document("a: &a {k: vvvvvvvv}\nb: {<<: [*a, *a, *a]}")


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("text", ["[[[[1]]]]", "a: {b: {c: {d: 1}}}", "- - - - 1", "k: [[[1]]]"])
def test_depth_is_bounded_however_it_is_written(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="at most 4 deep"):
        one_document(text)


@pytest.mark.usefixtures("narrow")
def test_documents_within_the_bounds_are_read_one_after_the_other() -> None:
    assert documents("a: &a [1]\nb: *a\n---\n[[2]]") == [{"a": [1], "b": [1]}, [[2]]]


def test_a_value_must_not_contain_itself() -> None:
    with pytest.raises(yaml.YAMLError, match="must not contain itself"):
        one_document("a: &a [1, *a]")
    with pytest.raises(yaml.YAMLError, match="must not contain itself"):
        documents("&a [1]\n---\n&a [*a]")


def test_a_number_has_a_bounded_number_of_digits() -> None:
    with pytest.raises(yaml.YAMLError, match="at most 400 digits"):
        one_document("seed: " + "9" * 401)


def _trained(path: Path) -> Any:
    return run_config(read_yaml(path))


def _tuned(path: Path) -> Any:
    return tuning_config(read_yaml(path))


def _resumed(path: Path) -> Any:
    path.rename(path.parent / "config.yaml")
    return RunFolder.existing(Storage.at(path.parent)).read_config()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("read", [_trained, _tuned, _resumed, check_file])
@pytest.mark.parametrize("text", [DOUBLED, "a: [[[[1]]]]", "a: &a {b: *a}", "a: " + 50 * "b"])
def test_every_command_refuses_a_document_out_of_bounds(
    read: Callable[[Path], Any], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"must be YAML, but .*must"):
        read(path)


@pytest.mark.usefixtures("narrow")
def test_a_value_of_the_command_line_is_bounded_as_a_document_is() -> None:
    with pytest.raises(ConfigError, match="at most 4 deep"):
        apply_pairs({}, ["stages=[[[[1]]]]"])


def test_a_dotted_key_is_as_deep_as_a_document_at_most() -> None:
    deep = ".".join(["model_options", *["a"] * (MOST_DEPTH - 2)])
    assert apply_pairs({}, [f"{deep}=1"])["model_options"]
    with pytest.raises(ConfigError, match=f"at most {MOST_DEPTH} mappings deep"):
        apply_pairs({}, [f"{deep}.a.a=1"])


def test_a_path_with_a_nul_is_no_file() -> None:
    with pytest.raises(ConfigError, match="must be a readable text file"):
        read_yaml(Path("a\0b.yaml"))


def test_values_are_shown_as_they_are_up_to_a_line() -> None:
    for value in ("a", 1, 1.5, [1, "b"], (1,), (1, 2), {"a": [None, True]}, [], {}, ()):
        assert shown(value) == repr(value)
    assert [shown(each) for each in (None, True, False)] == ["null", "true", "false"]
    assert shown("b" * 90) == repr("b" * 90)[:77] + "..."
    assert shown(list(range(90))) == repr(list(range(90)))[:77] + "..."


def test_no_more_of_a_value_is_written_out_than_is_shown() -> None:
    class Counted:
        seen = 0

        def __repr__(self) -> str:
            Counted.seen += 1
            return "a value"

    assert shown([Counted()] * 1000).endswith("...")
    assert Counted.seen < 20


def test_a_number_that_python_does_not_print_is_shown_by_its_digits() -> None:
    assert shown(1 << 20000) == "a whole number of about 6021 digits"


@pytest.mark.parametrize("value", [["adl"], {"adl": 1}, 7, None])
def test_a_method_that_is_no_text_is_one_error(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"`method` must be one of bp, .*, but got") as caught:
        run_config({"method": value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["name", "storage", "data", "model"])
def test_a_nul_in_a_text_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` must be a text without NUL characters"):
        run_config(load_yaml(f'{key}: "a\\0b"', "here"))


def test_a_rule_with_two_ends_names_both() -> None:
    with pytest.raises(
        ConfigError, match="`gradient_shrink` must be a number > 0 and <= 1, but got 5"
    ):
        run_config({"method": "ddg", "gradient_shrink": 5})
