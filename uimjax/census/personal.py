"""Personal data and secrets by pattern, each with the check that its kind allows. Places are given, never values.

| kind | pattern | check |
|---|---|---|
| login | https://name:password@host | - |
| email | name@host.domain | a domain of letters |
| card | 12 to 19 digits, in groups or not | Luhn's sum (ISO/IEC 7812), first digits and length of an issuer |
| iban | country, two digits, up to 30 characters | the country's length, remainder 1 of 97 (ISO 13616) |
| ssn | 123-45-6789 | areas, groups and numbers that are given out |
| phone | +country ..., or groups as (212) 555-0100 | 7 to 15 digits, no date, no card |
| ip | version 4 or 6 | an address that is routed |
| key | forms of well-known services, private keys, JSON web tokens | their own prefix |
| password | password = ..., token: ... and such | entropy of the value |

Names, addresses and birthdays have no pattern: what is counted here is a lower bound.
"""

import bisect
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

KINDS = ("login", "email", "card", "iban", "ssn", "phone", "ip", "key", "password")
ENTROPY = 2.8  # bits a character of a secret; words of English have about 2.3 to 2.8 where they are that short
PLACEHOLDER = re.compile(r"(?i)^(?:x+|\*+|<.*|\$.*|\{.*|your.*|example.*|changeme.*|none|null|true|false)$")


class Span(NamedTuple):
    """Characters `[start, stop)` of a text that are of a `kind`."""

    kind: str
    start: int
    stop: int


def spans(text: str) -> list[Span]:
    """All that is found, by place; of two that overlap the one of the kind that is named first in `KINDS`.

    >>> spans("mail ann@example.org or 4111 1111 1111 1111")
    [Span(kind='email', start=5, stop=20), Span(kind='card', start=24, stop=43)]
    """
    numbers = _numbers(text)  # most of a text holds none, and is not gone over again
    found: list[tuple[int, int, str]] = []  # by place: none overlaps another, so only the neighbours are looked at
    for kind in KINDS:
        for start, stop in _FINDERS[kind](text, numbers):
            at = bisect.bisect(found, (start, stop, ""))
            if (not at or found[at - 1][1] <= start) and (at == len(found) or stop <= found[at][0]):
                found.insert(at, (start, stop, kind))
    return [Span(kind, start, stop) for start, stop, kind in found]


def luhn(digits: str) -> bool:
    """Luhn's sum: from the right every second digit doubled, its digits added up, is a multiple of ten.

    >>> luhn("79927398713"), luhn("79927398710")
    (True, False)
    """
    doubled = [int(d) * (1 + k % 2) for k, d in enumerate(reversed(digits))]
    return sum(d // 10 + d % 10 for d in doubled) % 10 == 0


def entropy(text: str) -> float:
    """Bits a character, by how often each of its own occurs.

    >>> entropy("aabb")
    1.0
    """
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


Places = Iterator[tuple[int, int]]
Numbers = list[tuple[int, int]]  # where numbers are

EMAIL = re.compile(r"[A-Za-z0-9._%+\-]{1,64}@(?:[A-Za-z0-9\-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])")
NUMBERS = re.compile(r"\d[\d ().\-]{5,60}\d")  # all cards, phones, areas and addresses of version 4 lie in one
DIGITS = re.compile(r"(?<![\w.,$+])(?<!\+ )\d(?:[ \-]?\d){11,18}(?![\w]|[.,]\d)")
ISSUERS = re.compile(
    r"4(?:.{12}|.{15}|.{18})|5[1-5].{14}|2(?:22[1-9]|2[3-9].|[3-6]..|7[01].|720).{12}|3[47].{13}"
    r"|3(?:0[0-5].|[689]..).{10}|35(?:2[89]|[3-8].).{12,15}|(?:2131|1800).{11}|6(?:011|4[4-9].|5..).{12,15}"
    r"|62.{14,17}|(?:50|5[6-9]|6[0-9]).{10,17}"
)  # Visa, Mastercard (both ranges), American Express, Diners, JCB, Discover, UnionPay, Maestro
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
SSN = re.compile(r"(?<![\w\-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w\-])")
ABROAD = re.compile(
    r"(?<![\w+])(?:\+|00(?=[1-9]\d{1,2}[ .\-(]))\d{1,3}(?:[ .\-]?\(?\d{1,5}\)?){2,6}(?:x\d{1,5})?(?!\w)"
)
GROUPS = re.compile(r"(?<![\w.\-+])(?:1[ .\-])?(?:\(\d{3}\) ?|\d{3}[ .\-])\d{3}[ .\-]\d{4}(?:\s?x\d{1,5})?(?![\w\-])")
LOCAL = re.compile(r"(?<![\w.\-+/])\(?0[1-9]\d{0,3}\)?(?:[ .\-]\d{2,4}){2,4}(?![\w\-/])")
DATE = re.compile(r"\b(?:(?:19|20)\d\d[ .\-]\d{1,2}[ .\-]\d{1,2}|\d{1,2}[ .\-]\d{1,2}[ .\-](?:19|20)\d\d)\b")
IPV4 = re.compile(r"(?<![\w.\-])(?:\d{1,3}\.){3}\d{1,3}(?![\w\-]|\.\d)")
IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,7}(?![\w:])")
SIXES = re.compile(r":[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]")
VERSION = re.compile(r"(?i)(?:\bv|version|release|rev(?:ision)?|section|§|==|>=|<=)[\s:]*$")
KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|sk-(?:proj-|ant-)?[\w\-]{20,}"
    r"|xox[abprs]-[A-Za-z0-9\-]{10,}|AIza[0-9A-Za-z_\-]{35}|hf_[A-Za-z0-9]{30,}|glpat-[\w\-]{20,}"
    r"|eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,})(?![A-Za-z0-9])"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[A-Za-z0-9+/=\s]{1,8000}(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----)?"
)
BEGINS = (
    "AKIA",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "sk-",
    "xox",
    "AIza",
    "hf_",
    "glpat-",
    "eyJ",
    "PRIVATE KEY-----",
)  # of `KEY`
NAMED = ("passw", "passphrase", "pwd", "secret", "token", "key")  # of `SECRET`
SECRET = re.compile(
    r"(?i)(?:pass(?:word|wd|phrase)|pwd|secret|token|api[_\-]?key|access[_\-]?key|client[_\-]?secret)"
    r"\"?'?\s{0,3}(?:=|:|\bis\b)\s{0,3}[\"']?(?P<value>[^\s\"'`,;<>(){}\[\]]{8,128})"
)
LOGIN = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]{1,12}://[^\s:/@\"'<>]{1,64}:(?P<value>[^\s:/@\"'<>]{1,64})@[\w.\-]+")
IBAN_LENGTH = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20,
    "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip


def _numbers(text: str) -> Numbers:
    """Where numbers are, with as much beside them as a pattern looks at; no end lies within another number."""
    found: Numbers = []
    for match in NUMBERS.finditer(text):
        start, stop = max(match.start() - 6, 0), match.end() + 12
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return found


def _near(pattern: re.Pattern[str], text: str, numbers: Numbers) -> Iterator[re.Match[str]]:
    """What matches where numbers are."""
    for start, stop in numbers:
        yield from pattern.finditer(text, start, stop)


def _emails(text: str, _numbers: Numbers) -> Places:
    at, end = text.find("@"), 0
    while at >= 0:
        match = EMAIL.search(text, max(end, at - 64), at + 280)
        end = at + 1
        if match and match.start() < at < match.end():
            yield match.span()
            end = match.end()
        at = text.find("@", end)


def _cards(text: str, numbers: Numbers) -> Places:
    for match in _near(DIGITS, text, numbers):
        digits = re.sub(r"\D", "", match[0])
        if ISSUERS.fullmatch(digits) and len(set(digits)) > 1 and luhn(digits):
            yield match.span()


def _ibans(text: str, numbers: Numbers) -> Places:
    for match in IBAN.finditer(text) if numbers else ():
        length = IBAN_LENGTH.get(match[0][:2])
        letters = [(k, c) for k, c in enumerate(match[0]) if c != " "]
        if length is None or len(letters) < length:
            continue
        end = letters[length - 1][0] + 1  # a word in capitals may follow
        if match[0][end : end + 1] in ("", " "):
            code = "".join(c for _, c in letters[:length])
            if int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1:
                yield match.start(), match.start() + end


def _ssns(text: str, numbers: Numbers) -> Places:
    yield from (match.span() for match in _near(SSN, text, numbers))


def _phones(text: str, numbers: Numbers) -> Places:
    for pattern in (ABROAD, GROUPS, LOCAL):
        for match in _near(pattern, text, numbers):
            if 7 <= sum(c.isdigit() for c in match[0]) <= 15 and not DATE.search(match[0]):
                yield match.span()


def _addresses(text: str, numbers: Numbers) -> Places:
    sixes = IPV6.finditer(text) if "::" in text or SIXES.search(text) else ()
    for match in (*_near(IPV4, text, numbers), *sixes):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        if address.is_global and not VERSION.search(text[max(0, match.start() - 16) : match.start()]):
            yield match.span()


def _keys(text: str, _numbers: Numbers) -> Places:
    if any(begin in text for begin in BEGINS):
        yield from (match.span() for match in KEY.finditer(text))


def _passwords(text: str, _numbers: Numbers) -> Places:
    small = text.lower()
    if not any(word in small for word in NAMED):
        return
    for match in SECRET.finditer(text):
        value = match["value"].rstrip(".")
        mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
        called = text[match.end("value") : match.end("value") + 1] in ("(", "[")  # code, and no value
        if len(value) >= 8 and mixed and not called and entropy(value) >= ENTROPY and not PLACEHOLDER.match(value):
            yield match.start("value"), match.start("value") + len(value)


def _logins(text: str, _numbers: Numbers) -> Places:
    if "://" in text:
        yield from (match.span("value") for match in LOGIN.finditer(text) if not PLACEHOLDER.match(match["value"]))


_FINDERS: dict[str, Callable[[str, Numbers], Places]] = {
    "email": _emails, "card": _cards, "iban": _ibans, "ssn": _ssns, "phone": _phones, "ip": _addresses, "key": _keys,
    "password": _passwords, "login": _logins,
}  # fmt: skip
