"""The tokenizer of a checkpoint folder."""

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from uimjax.errors import CorruptError, MismatchError, MissingFileError

FILE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"


def read_tokenizer(folder: Path, vocabulary: int, older: bool = False) -> tokenizers.Tokenizer | None:
    """Of tokenizer.json, or for an `older` GPT-2 of its pair vocab.json and merges.txt (byte-level BPE, Radford et al.
    2019); None where there is neither.

    Raises:
        CorruptError: a file cannot be read. MismatchError: an id has no place in a model of so many words.
    """
    try:
        if (folder / FILE).is_file():
            found = read_words(folder)
        elif older and (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
            found = _byte_level(folder)
        else:
            return None
    except CorruptError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise CorruptError(f"the tokenizer in {folder} cannot be read ({error}). Download it again.") from error
    check_words(found, vocabulary, str(folder))
    return found


def check_words(found: tokenizers.Tokenizer, vocabulary: int, where: str) -> None:
    """Raises MismatchError: an id has no place in a model of so many words."""
    ids = found.get_vocab(with_added_tokens=True)
    if ids and max(ids.values()) >= vocabulary:
        word = max(ids, key=lambda word: ids[word])
        raise MismatchError(
            f"{where}: the tokenizer knows id {ids[word]} ({word!r}) and the model has {vocabulary} words. One of them"
            " is of another model, or words were added and the embedding not resized (`resize_token_embeddings`)."
        )


def read_words(path: str | Path) -> tokenizers.Tokenizer:
    """Of a tokenizer.json, or of the folder that it stands in. Raises MissingFileError, CorruptError."""
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise MissingFileError(f"{file} is not there (looked in {file.absolute().parent}); a {FILE} was wanted")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise CorruptError(f"the tokenizer in {file} cannot be read ({error}). Download it again.") from error


def _byte_level(folder: Path) -> tokenizers.Tokenizer:
    model = models.BPE.from_file(str(folder / VOCABULARY), str(folder / MERGES))
    found = tokenizers.Tokenizer(model)
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    found.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    found.add_special_tokens(["<|endoftext|>"])
    return found


def need_tokenizer(found: tokenizers.Tokenizer | None, folder: Path) -> tokenizers.Tokenizer:
    """Raises MissingFileError where there is none and text is to be read."""
    if found is None:
        raise MissingFileError(
            f"{folder} has no {FILE}, and text cannot be read without. Copy the "
            "tokenizer of the model into it: AutoTokenizer.from_pretrained(NAME).save_pretrained(DIR) of transformers "
            "writes it."
        )
    return found
