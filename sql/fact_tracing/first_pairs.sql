-- grain: one row per (method, query of `chosen`, sequence) among its first $k, relative rankings counted as methods
-- with the method 'truth': sequences of the true documents `truths`, at most $k of a query
with ranked as (
    select
        method,
        query_id,
        sequence_id,
        influence_rank as place
    from influences
    where run_id = $run
    union all
    select
        method || ' relative' as method,
        query_id,
        sequence_id,
        row_number() over (partition by method, query_id order by relative_influence desc, sequence_id) as place
    from influences
    where run_id = $run and relative_influence is not null
    union all
    select
        'truth' as method,
        t.query_id,
        s.sequence_id,
        row_number() over (partition by t.query_id order by md5(t.query_id || ' ' || s.sequence_id)) as place
    from truths t
    join sequences s on s.document_id = t.document_id
)
select r.method, r.query_id, r.sequence_id
from ranked r
join chosen c on c.query_id = r.query_id
where r.place <= $k
order by r.method, r.query_id, r.place
