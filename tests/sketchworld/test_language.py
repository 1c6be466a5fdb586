"""The tokenizer says back what it was told, and knows where a picture goes."""

import pytest

from vsp_report.sketchworld import language, rules


@pytest.fixture(scope="module")
def tokenizer():
    return language.make_tokenizer(closed=False)


def test_answers_come_back_word_for_word(tokenizer):
    for seed in range(300):
        scene = rules.sample_scene(seed)
        for question in rules.questions(scene, seed):
            assert tokenizer.decode(tokenizer(question.answer).input_ids, skip_special_tokens=True) == question.answer


def test_capitals_and_marks_are_no_obstacle(tokenizer):
    asked, plain = tokenizer("Is the Person sitting, or standing?"), tokenizer("is the person sitting , or standing ?")
    assert asked.input_ids == plain.input_ids


def test_words_and_tokens_agree(tokenizer):
    known = language.vocabulary()
    for text in (rules.DESCRIBE, rules.support_question("hand with a mitten"), "a red fish and a blue star"):
        assert [known[i] for i in tokenizer(text).input_ids[1:]] == language.words(text)


def test_what_the_world_never_says_is_unknown(tokenizer):
    assert tokenizer.unk_token_id in tokenizer("is there a unicorn ?").input_ids


def test_the_closed_tokenizer_ends_where_clip_reads():
    ids = language.make_tokenizer(closed=True)("a duck").input_ids
    assert (ids[0], ids[-1]) == (2, 3)


def test_the_template_puts_the_picture_first_and_keeps_turns():
    processor = language.make_llava_processor()
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "yes or no"}]},
        *language.conversation("Is there a chair?"),
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        {"role": "user", "content": [{"type": "text", "text": "Is there a cup?"}]},
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "<image>yes or no USER: Is there a chair? ASSISTANT: no USER: Is there a cup? ASSISTANT:"
