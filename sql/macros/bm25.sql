-- grain: one row per sequence: the k best by BM25 Okapi (k1 1.5, b .75, as rank_bm25) for a list of term ids
-- not the run's candidates: an ad-hoc search of the whole index
create or replace macro bm25(terms, k := 10) as table
with asked as (
    select term_id, count(*) as times
    from (select unnest(terms) as term_id)
    group by term_id
),
corpus as (
    select count(*) as n, avg(n_tokens) as mean_length
    from sequences
),
idfs as (
    select
        t.term_id,
        ln(c.n - t.document_frequency + 0.5) - ln(t.document_frequency + 0.5) as idf,
        avg(ln(c.n - t.document_frequency + 0.5) - ln(t.document_frequency + 0.5)) over () as mean_idf
    from terms t
    cross join corpus c
),
scored as (
    select
        p.sequence_id,
        sum(
            a.times
            * case when i.idf < 0 then 0.25 * i.mean_idf else i.idf end
            * p.term_frequency * 2.5
            / (p.term_frequency + 1.5 * (0.25 + 0.75 * s.n_tokens / c.mean_length))
        ) as score
    from postings p
    join asked a on a.term_id = p.term_id
    join idfs i on i.term_id = p.term_id
    join sequences s on s.sequence_id = p.sequence_id
    cross join corpus c
    where p.term_id in (select unnest(terms))
    group by p.sequence_id
)
select row_number() over (order by score desc, sequence_id) as rank, sequence_id, score
from scored
order by score desc, sequence_id
limit k
