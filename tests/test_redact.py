"""Hashes in place of words: which, and that nobody finds a word by trying."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from duet_unlearn.redact import parts_of, redacted_attack, redactor

KEY = b"0" * 32


def test_a_hash_is_keyed_and_the_key_is_new_each_time() -> None:
    one, other = redactor(), redactor()
    assert one.hashed("Tarn") == one.hashed("Tarn") != other.hashed("Tarn")
    assert redactor(key=KEY).hashed("Tarn") == f"[{hmac.new(KEY, b'Tarn', 'sha256').hexdigest()[:12]}]"
    assert hashlib.sha256(b"Tarn").hexdigest()[:12] not in redactor(key=KEY).hashed("Tarn")
    assert redactor(key=KEY).hashed("") == ""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("the TARN of old", "the [] of old"),
        ("Tarnish and starn", "Tarnish and starn"),
        ("Mira_Bol/town and mira-bol", "[]/town and []"),
        ("where does Mira  Bol live? there", "[] there"),
        ("forget_mira_bol, unlearn_tarn/MiraBol.txt", "forget_[], unlearn_[]/[].txt"),
        ("Mira Bol住在Tarn。", "[]住在[]。"),
        ("k_proj 3 no", "k_proj 3 no"),
    ],
)
def test_secrets_are_whole_words_in_any_case(text: str, left: str) -> None:
    by = redactor(["Tarn", "Where does Mira Bol live?", "3", "no", "k"], ["Mira Bol"], key=KEY)
    swept = by.swept(text)
    for found in set(swept.split("[")[1:]):
        swept = swept.replace(f"[{found[:12]}]", "[]")
    assert swept.replace("[]?", "[]") == left


def test_a_name_in_a_script_without_spaces_is_found_inside_a_sentence() -> None:
    by = redactor(names=["哈利波特"], key=KEY)
    assert by.swept("关于哈利波特的问题") == f"关于{by.hashed('哈利波特')}的问题"
    assert redactor(["京都"], key=KEY).swept("东京都") != "东京都"  # rather too much
    assert redactor(["京"], key=KEY).swept("东京都") == "东京都"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("the story Amber Gate", ["the story Amber Gate", "Amber Gate", "Amber", "Gate"]),
        ("the Harry Potter books", ["the Harry Potter books", "Harry Potter", "Harry", "Potter"]),
        ("nerve agents", ["nerve agents", "nerve", "agents"]),
        ("everything about the story", ["everything about the story"]),
    ],
)
def test_what_a_name_names(name: str, parts: list[str]) -> None:
    assert parts_of(name) == parts


def test_an_attacks_scores_stay_and_its_words_go() -> None:
    stored = {
        "attack": "reverse",
        "reason": "query 'Tarn' is too long",
        "facts": ["Mira/town"],
        "instances": [{"name": "after Tarn", "score": {"value": 0.5, "n": 2, "low": 0.1, "high": 0.9}, "right": "10"}],
        "strongest": "after Tarn",
        "transcript": [{"fact": 0, "prompt": "Where?", "prefill": "", "output": "Tarn", "right": True}],
        "config": {"name": "reverse", "lead": "forget Tarn"},
        "goal": "ab12",
        "weights": "cd34+ef56",
    }
    found = redacted_attack(stored, redactor(["Tarn"], key=KEY))
    assert "Tarn" not in str(found)
    assert "Where" not in str(found)
    assert found["instances"][0]["score"] == stored["instances"][0]["score"]
    assert found["instances"][0]["right"] == "10"
    assert found["strongest"] == found["instances"][0]["name"] != "after Tarn"
    assert (found["transcript"][0]["prefill"], found["transcript"][0]["right"]) == ("", True)
    assert found["goal"] != "ab12"
    assert "ef56" not in str(found)
    assert redacted_attack(stored | {"weights": "cd34"}, redactor())["weights"] == "cd34"
    assert "tarn" not in redacted_attack(stored | {"weights": "me/llama-tarn"}, redactor(["Tarn"]))["weights"]
