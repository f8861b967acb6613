"""The YAML reader surprises nobody, and what `dump` writes reads back equal."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from aim_tune.errors import StudyError
from aim_tune.spec.yaml_io import MAX_BYTES, dump, load_file, load_plain, load_text, resolve


def read(text: str) -> Any:
    tree, faults = load_text(text, "a.yaml")
    assert faults == []
    return tree.plain()


def faults_of(text: str) -> list[str]:
    return [str(f) for f in load_text(text, "a.yaml")[1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),  # PyYAML: a text
        ("1E5", 100000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-7", -7),
        ("0", 0),
        ("0o10", 8),
        ("0x1F", 31),
        ("no", "no"),  # PyYAML: False
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("FALSE", False),
        ("1_000", "1_000"),  # PyYAML: 1000
        ("1:30", "1:30"),  # PyYAML: 90
        ("2026-11-20", "2026-11-20"),  # PyYAML: a date
        ("=", "="),
        ("~", None),
        ("", None),
        ("null", None),
        ("e", "e"),
        (".", "."),
        ("1e", "1e"),
    ],
)
def test_plain_words_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 010", r"a\.yaml:1: a: 010 starts with a zero: 8 or 10\?"),
        ("a:\n  b: -007", r"a\.yaml:2: a\.b: -007 starts with a zero"),
        ("a: .nan", r"a: \.nan is not a finite number"),
        ("a: -.inf", r"a: -\.inf is not a finite number"),
        ("a: 1e999", "a: 1e999 is too large a number"),
        ("a: 9223372036854775808", "9223372036854775808 is too large a number"),
        ("a: 1\nb: 2\na: 3", r"a\.yaml:3: a: given twice, first at a\.yaml:1; keep one"),
        ("a: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is"),
        ("a: !mine 3", "the tag !mine is not obeyed; write the value alone"),
        ("a: &x [1, *x]", r"a\[1\]: \*x refers to itself or to nothing above it"),
        ("a: *x", r"\*x refers to itself or to nothing above it"),
        ("a: 1\n---\nb: 2", r"a\.yaml:2: a second document starts here"),
        ("[a, b]: 1", "keys must be plain words"),
        ("a:\n\tb: 1", r"a\.yaml:2: .*indent with spaces, not tabs"),
        ("a: [1, 2\nb: 3", r"a\.yaml:2: not YAML: expected ',' or '\]'"),
        ("a: 1\nb: \x07", r"a\.yaml:2: the character 7 is not allowed"),
        ("a: " + "[" * 50, "more than 20 levels"),
    ],
)
def test_traps_are_faults_with_their_line(text: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        raise StudyError(load_text(text, "a.yaml")[1])


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "more than 20 levels or 10,000 values" in faults_of("\n".join(lines))[0]


def test_an_alias_repeats_its_value() -> None:
    assert read("a: &x [1, 2]\nb: *x\nc: {d: *x}") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_several_faults_are_found_in_one_reading() -> None:
    text = "a: 010\nb: 1\nb: 2\nc: .nan\nd: !x y\ne: fine"
    assert [f.split(": ")[0] for f in faults_of(text)] == [f"a.yaml:{i}" for i in (1, 3, 4, 5)]


def test_keys_are_texts_even_if_they_look_like_something_else() -> None:
    assert read("on: 1\n1e3: 2\nnull: 3\n010: 4") == {"on": 1, "1e3": 2, "null": 3, "010": 4}


def test_every_key_and_item_knows_its_line() -> None:
    tree, _ = load_text("a:\n  b:\n    - 1\n    - 2\n", "a.yaml")
    b = tree.value["a"].value["b"]
    assert (tree.value["a"].where, b.where) == ("a.yaml:1", "a.yaml:2")
    assert [item.where for item in b.value] == ["a.yaml:3", "a.yaml:4"]


def test_quotes_make_a_text_of_anything() -> None:
    assert read("{a: '010', b: \"1e-3\", c: 'null', d: 'true'}") == {
        "a": "010", "b": "1e-3", "c": "null", "d": "true",
    }  # fmt: skip


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("\ufeffa: 1\r\nb: no\r\n".encode())
    assert load_plain(path) == {"a": 1, "b": "no"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xff\xfe", r"is not UTF-8 text \(byte 3\); save it as UTF-8"),
        (b"#" * (MAX_BYTES + 1), "is larger than 1,000,000 bytes: not a study file"),
        (b"- 1\n- 2", "expected a mapping, found a list"),
        (b"", r"expected a mapping, found null \(nothing\)"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=rf"a\.yaml(:1)?: {message}"):
        load_plain(path)


def test_a_missing_file_and_a_folder_are_faults(tmp_path: Path) -> None:
    _, (fault,) = load_file(tmp_path / "gone.yaml")
    assert str(fault).endswith(
        "gone.yaml: cannot be read (no such file or directory); give the path of a YAML file"
    )
    _, (fault,) = load_file(tmp_path)
    assert "is a directory" in fault.text


def test_short_collections_are_written_on_one_line() -> None:
    value = {
        "name": "x",
        "shared": {"lr": {"log_uniform": [1e-5, 0.1]}},
        "long": {f"setting_{i}": i for i in range(9)},
        "source": "import os\n\nprint(1)\n",
    }
    assert dump(value, "what this is\n\nend") == (
        "# what this is\n#\n# end\n"
        "name: x\n"
        "shared: {lr: {log_uniform: [1.0e-05, 0.1]}}\n"
        "long:\n" + "".join(f"  setting_{i}: {i}\n" for i in range(9)) + "source: |\n"
        "  import os\n\n  print(1)\n"
    )


def test_floats_are_floats_to_other_readers_too() -> None:
    value = {"a": 1e-7, "b": 1e22, "c": 3.0, "d": 1.5e-300}
    assert yaml.safe_load(dump(value)) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_written(number: float) -> None:
    with pytest.raises(ValueError, match="only finite numbers"):
        dump({"a": number})


CHARACTERS = [*"ab \n\t:#-'\"{}[]&*!|>%@`~01.e\\\r,?=", "\u2028", "\x85", "é", "😀", "\x7f"]
WORDS = ["010", "1e-3", "no", "null", "~", "", ".nan", "1_000", "---", "<<", "- a", " a", "a "]


def arbitrary(rng: random.Random, depth: int = 0) -> Any:
    def text() -> str:
        if rng.random() < 0.3:
            return rng.choice(WORDS)
        return "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(0, 12)))

    def many() -> range:
        return range(rng.randint(0, 4))

    kinds = [
        text,
        lambda: rng.randint(-(2**63) + 1, 2**63 - 1),
        lambda: rng.gauss(0, 1) * 10.0 ** rng.randint(-300, 300),
        lambda: rng.choice([None, True, False]),
        lambda: [arbitrary(rng, depth + 1) for _ in many()],
        lambda: {text(): arbitrary(rng, depth + 1) for _ in many()},
    ]
    return rng.choice(kinds if depth < 4 else kinds[:4])()


def test_what_is_written_reads_back_equal() -> None:
    rng = random.Random(0)
    for _ in range(300):
        value = {f"key{i}": arbitrary(rng) for i in range(3)}
        assert read(dump(value)) == value
        assert dump(value) == dump(read(dump(value)))
