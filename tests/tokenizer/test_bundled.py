"""The bundled tokenizer."""

from __future__ import annotations

from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory


def test_the_bundled_tokenizer_round_trips_text_and_masks_answers() -> None:
    tokenizer = BundledTokenizerFactory().create_tokenizer()
    assert len(tokenizer) == 4096
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    text = "naïve 你好 😀\n\t 1234"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    answer = [token for token, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(answer) == "a<|im_end|>"
