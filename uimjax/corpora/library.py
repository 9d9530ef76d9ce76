"""The Python standard library's own source files: real text from many hands, present on every machine.

The list of modules is fixed; their text varies with the Python build, so every run records its digest.
"""

import sysconfig
from pathlib import Path

import numpy as np

from uimjax.corpora.documents import Source, TextCorpus, windows
from uimjax.corpora.tokenizer import Tokenizer, byte_tokenizer, train_bpe
from uimjax.errors import MissingFileError, UsageError

TRAIN = (
    "argparse", "bdb", "cmd", "codecs", "configparser", "contextlib", "copy", "csv", "dataclasses", "difflib",
    "email/message", "enum", "fractions", "ftplib", "functools", "gettext", "glob", "gzip", "http/client", "ipaddress",
    "json/decoder", "locale", "logging/handlers", "mimetypes", "netrc", "numbers", "optparse", "os", "pdb", "platform",
    "plistlib", "pprint", "random", "selectors", "shlex", "shutil", "smtplib", "socket", "statistics", "string",
    "subprocess", "textwrap", "threading", "tokenize", "traceback", "unittest/case", "urllib/parse", "uuid", "warnings",
    "weakref", "webbrowser", "xml/dom/minidom", "zipapp",
)  # fmt: skip
TEST = (
    "calendar", "compileall", "filecmp", "getopt", "http/cookies", "http/server", "imaplib", "poplib", "profile",
    "pstats", "queue", "sched", "shelve", "socketserver", "symtable", "tabnanny", "tempfile", "timeit", "trace",
    "types", "unittest/loader", "unittest/suite", "urllib/robotparser", "wave", "xml/dom/pulldom",
)  # fmt: skip


def read_modules(names: tuple[str, ...]) -> list[Source]:
    """The modules' source files, in order; a path is relative to the library's folder.

    Raises:
        MissingFileError: this Python comes without them.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for name in names:
        path = root / f"{name}.py"
        if not path.is_file():
            raise MissingFileError(
                f"{path} is not there: this Python comes without its library's source. Use another Python, or give "
                "text of your own (corpus: pkg.module:function, or train_folder and test_folder)."
            )
        found.append(Source(f"{name}.py", path.read_text(encoding="utf-8")))
    return found


def stdlib(tokenizer: str, length: int, documents: int, held_out: int) -> TextCorpus:
    """Windows of the fixed list of modules; which ones follows from the list alone."""
    return text_corpus("stdlib", read_modules(TRAIN), read_modules(TEST), tokenizer, length, documents, held_out)


def text_corpus(
    name: str, train: list[Source], test: list[Source], tokenizer: str, length: int, documents: int, held_out: int
) -> TextCorpus:
    """Cut files into windows and keep at most `documents` and `held_out` of them, drawn by a fixed permutation.

    `tokenizer`: "bytes", or "bpe-SIZE", trained on the training files.

    Raises:
        UsageError: an unknown tokenizer, or no text.
    """
    made = make_tokenizer(tokenizer, train)
    parts = []
    for sources, most in ((train, documents), (test, held_out)):
        found = [d for source in sources for d in windows(source, made, length)]
        kept = np.sort(np.random.default_rng(0).permutation(len(found))[:most])
        if not found:
            raise UsageError(f"{name}: the {'held-out' if parts else 'training'} files hold no text")
        parts.append(tuple(found[k] for k in kept))
    return TextCorpus(name, parts[0], parts[1], made, length)


def make_tokenizer(name: str, train: list[Source]) -> Tokenizer:
    kind, _, size = name.partition("-")
    if name == "bytes":
        return byte_tokenizer()
    if kind != "bpe" or not size.isdecimal():
        raise UsageError(f"unknown tokenizer {name!r}: bytes, or bpe-SIZE (bpe-512)")
    return train_bpe([source.text for source in train], int(size))
