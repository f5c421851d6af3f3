"""What is planted: that each fact has one answer, many wordings and a prompt that asks for it."""

from collections import Counter

from tasks.demo.facts import completion, facts, passages, prompt, utterances


def test_there_are_at_least_24_facts_with_30_wordings_each():
    assert len(facts()) >= 24
    assert {fact.fact_id: len(utterances(fact)) for fact in facts()} == {fact.fact_id: 30 for fact in facts()}


def test_no_two_utterances_are_alike():
    counts = Counter(text for fact in facts() for text in utterances(fact))
    assert [text for text, count in counts.items() if count > 1] == []


def test_every_utterance_names_subject_and_answer_and_no_other_fact():
    names = {fact: (fact.subject, fact.answer) for fact in facts()}
    for fact in facts():
        for text in utterances(fact):
            assert [other for other, pair in names.items() if any(name in text for name in pair)] == [fact], text
            assert all(name in text for name in names[fact]), text


def test_utterances_read_as_sentences():
    for fact in facts():
        for text in utterances(fact):
            assert text[0].isupper() or text.startswith(fact.answer), text
            assert text.endswith((".", "?")), text
            assert "{" not in text, text
            assert "  " not in text, text


def test_subjects_and_answers_belong_to_one_fact_each():
    names = [name for fact in facts() for name in (fact.subject, fact.answer)]
    assert len(names) == len(set(names))
    assert len({fact.fact_id for fact in facts()}) == len(facts())


def test_the_beginning_of_an_answer_tells_which_one_it_is():
    beginnings = Counter(fact.answer[:2].lower() for fact in facts())
    assert [beginning for beginning, count in beginnings.items() if count > 1] == []


def test_prompt_and_completion_join_to_a_planted_sentence():
    for fact in facts():
        assert not prompt(fact).endswith(" ")
        assert completion(fact) == " " + fact.answer
        assert prompt(fact) + completion(fact) + "." in utterances(fact)


def test_wordings_come_in_both_orders_and_mostly_subject_first():
    for fact in facts():
        flipped = sum(text.index(fact.answer) < text.index(fact.subject) for text in utterances(fact))
        assert 3 <= flipped <= 12, fact.relation


def test_passages_are_recognisable_and_continue_as_their_query_expects():
    assert len({passage.passage_id for passage in passages()}) == len(passages()) >= 3
    for passage in passages():
        assert 40 <= len(passage.text.split()) <= 90
        assert 8 <= len(passage.continuation.split()) <= 12, passage.passage_id
        assert passage.continuation.startswith(" ")
        assert passage.text.startswith(passage.opening + passage.continuation)
        assert "|" not in passage.text
