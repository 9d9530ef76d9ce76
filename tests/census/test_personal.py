"""Personal data by pattern: what each check lets through, against sums done another way, and real sentences."""

import json
import math
import re
import time

import pyarrow.parquet as pq
import pytest

from uimjax.census.personal import KINDS, entropy, luhn, spans


def kinds(text):
    return [(span.kind, text[span.start : span.stop]) for span in spans(text)]


def test_luhn_by_hand(rng):
    """The textbook's way: from the right, every second digit twice, nine off where that has two digits."""
    for _ in range(200):
        digits = [int(d) for d in rng.integers(10, size=rng.integers(2, 20))]
        total = 0
        for k, d in enumerate(digits[::-1]):
            total += d if k % 2 == 0 else (2 * d if 2 * d < 10 else 2 * d - 9)
        assert luhn("".join(map(str, digits))) == (total % 10 == 0)


def test_entropy_by_hand():
    assert entropy("abcd") == 2.0
    assert entropy("aaaa") == 0.0
    assert math.isclose(entropy("aab"), math.log2(3) - 2 / 3)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("write to ann.lee+x@mail.example.co.uk.", [("email", "ann.lee+x@mail.example.co.uk")]),
        ("two: a@b.org,c@d.net", [("email", "a@b.org"), ("email", "c@d.net")]),
        ("a decorator @property and a @ b", []),
        ("pay with 4111-1111-1111-1111 now", [("card", "4111-1111-1111-1111")]),
        ("pay with 378282246310005", [("card", "378282246310005")]),
        ("a number 4111111111111112 that sums wrong", []),
        ("an id 9999999999999995 of no issuer", []),
        ("3.4111111111111111 is a number", []),
        ("IBAN DE89 3704 0044 0532 0130 00 AND MORE", [("iban", "DE89 3704 0044 0532 0130 00")]),
        ("IBAN DE88370400440532013000", []),
        ("ssn 123-45-6789, not 000-12-3456 and not 666-12-3456", [("ssn", "123-45-6789")]),
        ("call (212) 555-0142 or +44 20 7946 0958", [("phone", "(212) 555-0142"), ("phone", "+44 20 7946 0958")]),
        ("on 2008-11-09 15:00 and 12.05.1999", []),
        ("from 8.8.8.8 to 127.0.0.1 and 999.1.1.1", [("ip", "8.8.8.8")]),
        ("version 10.20.3.4 of it", []),
        ("host 2001:4860:4860::8888 answered", [("ip", "2001:4860:4860::8888")]),
        ("key AKIAIOSFODNN7EXAMPLE here", [("key", "AKIAIOSFODNN7EXAMPLE")]),
        ('password = "h8Kq2xPz9w"', [("password", "h8Kq2xPz9w")]),
        ("password: changeme1 token = <your-token-1>", []),
        ("token = jnp.int32(42)", []),
        ("git clone https://bob:s3cr3t99@git.example.org/x", [("login", "s3cr3t99")]),
        ("", []),
    ],
)
def test_what_is_found(text, want):
    assert kinds(text) == want


def test_of_two_that_overlap_one_is_told():
    text = "bob@4111111111111111.example.org"
    assert [kind for kind, _ in kinds(text)] == ["email"]


def test_places_are_those_of_the_text_with_signs_beyond_ascii():
    text = "naïve — “ann@example.org” 我们 4111 1111 1111 1111"
    assert kinds(text) == [("email", "ann@example.org"), ("card", "4111 1111 1111 1111")]


@pytest.mark.parametrize("text", ["1 " * 50_000, "a@" * 50_000, "-" * 100_000, "1.1.1.1." * 20_000, "+1 (2) " * 20_000,
                                  "DE89 " * 20_000, "password=" * 10_000, "A" * 100_000, "a:b:" * 30_000,
                                  "ann@example.org " * 20_000])  # fmt: skip
def test_no_text_takes_long(text):
    start = time.perf_counter()
    spans(text)
    assert time.perf_counter() - start < 5


def test_sentences_that_others_made(reference_data):
    """1,500 sentences with their spans, made by another tool. Telephone numbers have more forms than are known here."""
    known = {"CREDIT_CARD": "card", "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "US_SSN": "ssn", "IP_ADDRESS": "ip"}
    least = {"card": 0.9, "email": 1.0, "iban": 0.9, "ssn": 1.0, "ip": 1.0}
    met, true = dict.fromkeys(least, 0), dict.fromkeys(least, 0)
    for row in pq.read_table(reference_data / "priv_synth_pii" / "synth_dataset_v2.parquet").to_pylist():
        found = spans(row["full_text"])
        wanted = [(known[s["entity_type"]], s["start_position"], s["end_position"])
                  for s in json.loads(row["spans"]) if s["entity_type"] in known]  # fmt: skip
        for kind, a, b in wanted:
            true[kind] += 1
            met[kind] += any(s.kind == kind and s.start < b and s.stop > a for s in found)
        for s in found:
            if s.kind in least:
                assert any(k == s.kind and s.start < b and s.stop > a for k, a, b in wanted), row["full_text"]
    assert all(met[kind] >= least[kind] * true[kind] for kind in least), (met, true)
    assert true["card"] > 100


def test_the_table_of_kinds_is_documented():
    from uimjax.census import personal

    assert re.findall(r"^\| (\w+) \|", personal.__doc__, re.MULTILINE)[1:] == list(KINDS)
