-- grain: one row per (query, document): the true documents of a query and those that are ranked against them
-- not of fixed candidates: a set that names its candidates is taken at its word; of documents with the same text one stays
with cut as (
    select document_id, row_number() over (order by document_id) - 1 as document_number
    from (select distinct document_id from sequences)
),
found as (
    select l.query_id, s.document_id, min(l.place) as place
    from lexical_hits l
    join sequences s on s.sequence_id = l.sequence_id
    group by l.query_id, s.document_id
),
lexical as (
    select query_id, document_id
    from found
    qualify row_number() over (partition by query_id order by place) <= $lexical
),
answers as (
    select distinct answer, array_to_string(words_of(answer), ' ') as words
    from asked
),
said as (
    select document_id, text, ' ' || array_to_string(words_of(text), ' ') || ' ' as words
    from documents
),
-- A document has the query's target if it states a fact with that answer, in whatever words, or says the answer:
-- whole words, so that entity-12 does not say entity-1.
stating as (
    select distinct a.answer, t.document_id
    from truths t
    join asked a on a.query_id = t.query_id
    union
    select a.answer, d.document_id
    from answers a
    join said d on contains(d.text, a.answer) and (a.words = '' or contains(d.words, ' ' || a.words || ' '))
),
same_target as (
    select a.query_id, s.document_id
    from asked a
    join stating s on s.answer = a.answer
    anti join truths t on t.query_id = a.query_id and t.document_id = s.document_id
    qualify row_number() over (
        partition by a.query_id order by md5($seed || ' ' || a.query_id || ' ' || s.document_id), s.document_id
    ) <= $same_target
),
uniform as (
    select u.query_id, c.document_id
    from uniform_draws u
    join cut c on c.document_number = u.document_number
),
ranked as (
    select query_id, document_id from truths
    union
    select query_id, document_id from lexical
    union
    select query_id, document_id from same_target
    union
    select query_id, document_id from uniform
),
told as (
    select
        r.query_id,
        r.document_id,
        t.document_id is not null as is_true,
        md5(d.text) as words
    from ranked r
    join documents d on d.document_id = r.document_id
    left join truths t on t.query_id = r.query_id and t.document_id = r.document_id
)
select query_id, document_id
from told
qualify row_number() over (partition by query_id, words order by is_true desc, document_id) = 1
order by query_id, document_id
