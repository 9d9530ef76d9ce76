"""Templates to offline pages: one style, every text escaped, no script, no network."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from uimjax.errors import OutputError
from uimjax.store.base import atomic


def write(path: Path, template: str, script: str = "", **values: Any) -> Path:
    """Render a template of this folder to a file; `script`: the one file of code that the page may run, which holds no
    value of it.

    Raises:
        OutputError: the folder is not there, or cannot be written.
    """
    here = Path(__file__).parent
    style = (here / "page.css").read_text()
    digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()  # noqa: E731  # as CSP has it
    loader = jinja2.FileSystemLoader(here)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    if script:
        code = (here / script).read_text()
        values |= {"script": code, "script_digest": digest(code)}
    html = environment.get_template(template).render(style=style, style_digest=digest(style), **values)
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is no folder; choose another place with --out")
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path
