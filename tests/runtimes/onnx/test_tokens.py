"""Tokenizers of ONNX models."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtimes.errors import LoadError, UnsafeFileError
from runtimes.onnx.tokens import TextTokenizer


def write(folder: Path, tokenizer: Tokenizer, **configs: Any) -> dict[str, Path]:
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return {path.name: path for path in folder.iterdir()}


def byte_level(*special: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def test_pieces_are_the_bytes_of_the_text(tmp_path: Path) -> None:
    tokens = TextTokenizer(write(tmp_path, byte_level("<end>")))
    for text in ("plain", "grüß 世界 😀\n", bytes(range(1, 128)).decode()):
        assert b"".join(map(tokens.piece, tokens.encode(text))) == text.encode()
    assert [tokens.piece(token) for token in tokens.encode("a<end>b")] == [b"a", b"", b"b"]


def test_byte_fallback_and_sentencepiece_blanks(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "\N{LOWER ONE EIGHTH BLOCK}a": 1, "<0xE2>": 2, "<0x0A>": 3}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokens = TextTokenizer(write(tmp_path, tokenizer))
    assert [tokens.piece(token) for token in (1, 2, 3)] == [b" a", b"\xe2", b"\n"]


@pytest.mark.parametrize(
    ("wanted", "text", "begins"),
    [(True, "ab", 1), (True, "<s>ab", 1), (True, "<s><s>ab", 1), (False, "ab", 0), (None, "ab", 0)],
)
def test_a_text_begins_with_one_begin_token_where_the_model_wants_it(
    wanted: bool | None, text: str, begins: int, tmp_path: Path
) -> None:
    config = {"bos_token": {"content": "<s>"}, "add_bos_token": wanted}
    files = write(tmp_path, byte_level("<s>"), tokenizer_config=config)
    tokens = TextTokenizer(files)
    begin = Tokenizer.from_file(str(files["tokenizer.json"])).token_to_id("<s>")
    assert tokens.encode(text).count(begin) == begins


def test_every_token_that_ends_a_text_is_known(tmp_path: Path) -> None:
    files = write(
        tmp_path,
        byte_level("<a>", "<b>", "<c>"),
        config={"eos_token_id": 7},
        generation_config={"eos_token_id": [256, 257]},
        tokenizer_config={"eos_token": "<c>"},
    )
    assert TextTokenizer(files).end_tokens == {256, 257, 258}


def test_the_template_of_its_own_file_wins(tmp_path: Path) -> None:
    several = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    files = write(tmp_path, byte_level(), tokenizer_config={"chat_template": several})
    assert TextTokenizer(files).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    files = {path.name: path for path in tmp_path.iterdir()}
    assert TextTokenizer(files).chat_template == "J"


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"tokenizer\.json"):
        TextTokenizer({})
    files = write(tmp_path, byte_level(), config={"eos_token_id": "end"})
    with pytest.raises(UnsafeFileError, match=r"config\.json"):
        TextTokenizer(files)
    files = write(tmp_path, byte_level(), config={})
    files["tokenizer.json"].write_text("{}")
    with pytest.raises(LoadError):
        TextTokenizer(files)
