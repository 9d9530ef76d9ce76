"""Counterfactual texts."""

import jax.numpy as jnp
import numpy as np
import pytest

from uimjax.errors import UsageError
from uimjax.mitigate.synthetic import continued, filled, swapped
from uimjax.models.blocks import Shape
from uimjax.models.decoder import build_decoder


def test_whole_words_change_places_and_keep_their_capitals():
    pairs = [("he", "she"), ("uncle", "aunt")]
    assert swapped(["He said SHE saw the Uncle, her aunt."], pairs) == ["She said HE saw the Aunt, her uncle."]
    assert swapped(["the hex of shell"], pairs) == ["the hex of shell"]
    text = "He and she; Aunt-uncle."
    assert swapped(swapped([text], pairs), pairs) == [text]


def test_words_with_signs_are_words_too():
    assert swapped(["C++ or C"], [("c++", "rust")]) == ["Rust or C"]


@pytest.mark.parametrize("pairs", [[], [("he", " ")], [("he", "she"), ("SHE", "they")], [("he", "He")]])
def test_pairs_that_make_no_sense_are_refused(pairs):
    with pytest.raises(UsageError, match="one pair each"):
        swapped(["x"], pairs)


def test_a_template_stands_for_every_choice_of_its_words():
    assert filled("the {nurse|pilot} said {he|she} is late") == [
        "the nurse said he is late", "the nurse said she is late",
        "the pilot said he is late", "the pilot said she is late",
    ]  # fmt: skip
    assert filled("{a|}b") == ["ab", "b"]
    for wrong in ("no choice", "{alone}", "{a|b", "a}|{b", "{a|b}}"):
        with pytest.raises(UsageError, match="template"):
            filled(wrong)
    with pytest.raises(UsageError, match="several"):
        filled("{a|b}" * 13)


def test_a_row_goes_on_as_the_model_says():
    """At a low temperature: the likeliest token after every prefix, one pass a token, by a loop of our own."""
    task, params = build_decoder(Shape(vocabulary=17, length=10, width=16, heads=2, layers=1), seed=3)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 17, (5, 10)).astype(np.int32)
    counted = (np.arange(10)[None] < np.array([10, 10, 7, 4, 10])[:, None]).astype(np.uint8)
    tokens = np.where(counted, tokens, 0)
    found = continued(task, params, {"tokens": tokens, "counted": counted}, prompt=0.4, temperature=1e-4, batch_size=2)
    slow = tokens.copy()
    for k, many in enumerate(counted.sum(1)):
        for t in range(max(1, int(0.4 * many)), many):
            row = {"tokens": jnp.asarray(slow[k]), "counted": jnp.asarray(counted[k], jnp.float32)}
            slow[k, t] = int(np.argmax(task.outputs(params, row)[t - 1]))
    assert (found["tokens"] == slow).all()
    assert found["tokens"].dtype == np.int32
    assert (found["counted"] == counted).all()
    other = continued(task, params, {"tokens": tokens, "counted": counted}, temperature=5.0, seed=1)["tokens"]
    assert (other != continued(task, params, {"tokens": tokens, "counted": counted}, temperature=5.0)["tokens"]).any()
    given = {"tokens": tokens, "counted": counted}
    two, three = (continued(task, params, given, batch_size=size)["tokens"] for size in (2, 3))
    assert (two == three).all(), "what is drawn for a row does not hang on the rows beside it"
    for wrong in ({"prompt": 1.0}, {"temperature": 0.0}):
        with pytest.raises(UsageError):
            continued(task, params, {"tokens": tokens, "counted": counted}, **wrong)
