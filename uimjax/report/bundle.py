"""All that is written of a finished run: its page, that in plain words in each language, a model card's section."""

from pathlib import Path

from uimjax.report import explained, findings, modelcard, page, register, suite
from uimjax.report.phrases import PHRASES
from uimjax.store import read_json


def write_all(run: Path, path: Path, reveal: bool = False) -> Path:
    """The page of a run to `path`, the others beside it; `reveal`: leaked secrets in clear.

    Raises: as `page.write_page`, `findings.of_folder`.
    """
    if (run / "suite.json").exists():
        suite.write_page(read_json(run / "suite.json"), path)
    elif any((run / name).exists() for name in findings.KNOWN):  # audits, traces and cards have a page already
        if not path.exists():
            explained.write_page(run, path)
    else:
        page.write_page(run, path, reveal, beside=True)
    for lang in PHRASES:
        explained.write_page(run, path.parent / explained.name_of(lang), lang)
    modelcard.write(register.rows(findings.of_folder(run)), run.name or run.absolute().name, path.parent)
    return path
