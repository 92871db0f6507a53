from __future__ import annotations

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from headscope.report.tokens import Gap, Token, clean, readings, visible


def rows(weights: dict[int, float], query: int = 999) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample": "s",
            "layer": 1,
            "head": 2,
            "query": query,
            "query_token": "?",
            "key": list(weights),
            "key_token": [f"t{key}" for key in weights],
            "weight": list(weights.values()),
        }
    )


def pieces(weights: dict[int, float], query: int = 999) -> tuple[Token | Gap, ...]:
    return readings(rows(weights, query))[0][0].rows[0].pieces


def test_a_long_row_is_folded_round_its_mass() -> None:
    found = pieces(dict.fromkeys(range(1000), 0.0002) | {400: 0.8})
    assert len([piece for piece in found if isinstance(piece, Token)]) < 40
    assert any(isinstance(piece, Token) and piece.position == 400 and piece.weight == 0.8 for piece in found)


def test_every_key_is_shown_or_counted() -> None:
    found = pieces({0: 0.2, 400: 0.7, 401: 0.05, 999: 0.01})
    assert sum(piece.count if isinstance(piece, Gap) else 1 for piece in found) == 1000


def test_weight_of_a_gap_is_exact_only_if_all_its_keys_are_known() -> None:
    known = pieces(dict.fromkeys(range(1000), 0.0001) | {400: 0.9})
    assert all(piece.exact for piece in known if isinstance(piece, Gap))
    assert not any(piece.exact for piece in pieces({400: 0.9}) if isinstance(piece, Gap))


def test_short_rows_are_shown_whole() -> None:
    found = pieces(dict.fromkeys(range(5), 0.2), query=4)
    assert [piece.position for piece in found if isinstance(piece, Token)] == [0, 1, 2, 3, 4]


def test_readings_beyond_the_limit_are_counted() -> None:
    frame = pd.concat([rows({0: 1.0}).assign(head=head) for head in range(5)])
    found, left_out = readings(frame, limit=2)
    assert (len(found), left_out) == (2, 3)


def test_rows_that_rest_on_the_first_token_come_last() -> None:
    frame = pd.concat([rows({0: 0.9, 5: 0.1}, 10), rows({0: 0.1, 5: 0.9}, 11)])
    assert [row.query for row in readings(frame, queries=1)[0][0].rows] == [11]


def test_emoji_stay_whole_and_direction_marks_are_named() -> None:
    assert visible("👩‍🚀") == "👩‍🚀"
    assert visible("\u2066x") == "‹U+2066›x"
    assert visible("שלום") == "שלום"
    assert visible(None) == "∅"
    assert visible("ĊĊ") == "↵↵"


@given(st.text())
def test_visible_text_holds_no_control_character(text: str) -> None:
    shown = visible(text)
    assert shown
    assert clean(shown) == shown
    assert not set(shown) & set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068")


@given(st.text(st.characters()))
def test_clean_text_can_be_written(text: str) -> None:
    clean(text).encode("utf-8")
