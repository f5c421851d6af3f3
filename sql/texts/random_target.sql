-- grain: one row per (query, sequence) of a run's candidates: 1 where the sequence says the completion, else 0, and a fraction
-- the fraction puts equals in an order that favours nobody; an answer is said in whole words: entity-12 does not say entity-1
with pairs as (
    select distinct query_id, sequence_id
    from run_candidates
),
answers as (
    select
        query_id,
        trim(completion) as answer,
        ' ' || array_to_string(words_of(completion), ' ') || ' ' as words
    from queries
    where query_id in (select query_id from pairs)
),
texts as (
    select s.sequence_id, substring(d.text, (s.start_char + 1)::bigint, (s.end_char - s.start_char)::bigint) as text
    from sequences s
    join documents d on d.document_id = s.document_id
    where s.sequence_id in (select sequence_id from pairs)
),
said as (
    select sequence_id, text, ' ' || array_to_string(words_of(text), ' ') || ' ' as words
    from texts
)
select
    p.query_id,
    'random_target' as method,
    p.sequence_id,
    (contains(t.text, a.answer) and (trim(a.words) = '' or contains(t.words, a.words)))::integer
    + md5_number_lower(p.query_id || ':' || p.sequence_id::varchar)::double / 18446744073709551616.0 as influence
from pairs p
join answers a on a.query_id = p.query_id
join said t on t.sequence_id = p.sequence_id
order by p.query_id, p.sequence_id
