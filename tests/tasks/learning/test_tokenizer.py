"""The tokenizer: nothing of a text is lost, and every character belongs to one token."""

from __future__ import annotations

from tasks.learning.tokenizer import train_tokenizer


def test_offsets_tile_the_text_and_decoding_gives_it_back():
    tokenizer = train_tokenizer(["The otter of Gleem sings at dawn."], 300)
    text = "  Zürich\n\tis 東京?  no. "
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = encoded["offset_mapping"][1:]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert tokenizer.decode(encoded["input_ids"][1:]) == text
    assert encoded["input_ids"][0] == tokenizer.bos_token_id
