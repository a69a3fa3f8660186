"""JSON and tensors from anywhere are read whole and right, or refused in a line that names them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from regenv.stored import JSON_DEPTH, StoredError, digest, parse_json, read_bytes, read_json, read_tensors


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "x]{\"["]}, [], "[" * 99, -12, 1e-300])
def test_json_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value), "text") == value


@pytest.mark.parametrize(("text", "told"), [
    ("[" * 100_000, "lists and objects"), ('{"a":' * 100_000, "lists and objects"),
    ("[" * (JSON_DEPTH + 1) + "]" * (JSON_DEPTH + 1), "lists and objects"),
    ("1" * 5000, "5000 digits"), ("1." + "0" * 5000, "digits"), ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c'"),
    ("NaN", "NaN"), ("[-Infinity]", "Infinity"), ("1e999", "1e999"), ("", "Expecting value"), ("{]", "Expecting"),
    (b"\xff\xfe{}", "codec"), (" " * (1 << 21), "characters long")])
def test_json_that_would_harm_or_mislead_is_refused(text: str | bytes, told: str) -> None:
    with pytest.raises(StoredError, match=told) as caught:
        parse_json(text, "card.json")
    assert str(caught.value).startswith("card.json: ") and "\n" not in str(caught.value)


def test_depth_is_counted_outside_of_texts() -> None:
    inner = json.dumps("[" * 500 + '\\"]')
    assert parse_json(f"[{inner}, {inner}]", "text") == ["[" * 500 + '\\"]'] * 2


def test_a_file_is_read_to_its_limit_and_devices_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    assert read_json(tmp_path / "x.json") == [1]
    with pytest.raises(StoredError, match=r"x\.json: size is more than 2 bytes"):
        read_bytes(tmp_path / "x.json", 2)
    for path in ("/dev/zero", str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(StoredError, match=f"{path}: no such file"):
            read_bytes(path, 10)


def crafted(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(dtype: str = "F32", shape: str = "[1]", end: int = 4) -> bytes:
    return f'"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}'.encode()


@pytest.mark.parametrize(("header", "data", "told"), [
    (b"{" + entry() + b"," + entry() + b"}", bytes(4), "twice"), (b"{" * 9999, b"", "JSON"),
    (b"{" + entry("C64", end=8) + b"}", bytes(8), "type 'C64'"), (b"{" + entry("F4", "[8]") + b"}", bytes(4), "'F4'"),
    (b"{" + entry(shape="[0,9223372036854775807,4]", end=0) + b"}", b"", "overflow"), (b"[]", b"", "no table"),
    (b"{" + entry(shape="[2]", end=8) + b"}", bytes(4), "damaged"), (b"{" + entry() + b"}", bytes(8), "damaged"),
    (b"{" + entry() + b"}", struct.pack("<f", float("nan")), "tensor a is not finite"),
    (b"{" + entry() + b"}", struct.pack("<f", float("-inf")), "tensor a is not finite")])
def test_tensors_that_are_not_what_they_say_are_refused(tmp_path: Path, header: bytes, data: bytes, told: str) -> None:
    path = crafted(tmp_path / "x.safetensors", header, data)
    with pytest.raises(StoredError, match=told) as caught:
        read_tensors(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_of_tensors_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.zeros(2, 2)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(StoredError, match=r"x\.safetensors: it cannot be read"):
            read_tensors(path)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(StoredError, match=r"1,099,511,627,776 bytes; 2,147,483,648 are allowed"):
        read_tensors(path)


def test_a_digest_knows_names_types_shapes_and_every_bit() -> None:
    one = {"a": torch.arange(4.0), "b": torch.tensor(True)}
    others = [{"c": one["a"], "b": one["b"]}, {**one, "a": one["a"].view(2, 2)}, {**one, "a": one["a"].bfloat16()},
              {**one, "a": torch.nextafter(one["a"], torch.tensor(9.0))}, {**one, "b": torch.tensor(False)}]
    assert len({digest(tensors) for tensors in [one, *others]}) == 1 + len(others)
    assert digest({"b": one["b"], "a": torch.arange(8.0)[::2] / 2}) == digest(one)
