-- grain: one row per (method, query) for queries whose metadata name a truth that the corpus holds, with its places
-- `relative` rankings count as methods of their own; ranks are among the query's candidates
with asked as (
    select r.query_id, truth_of(q.metadata) as truth
    from run_queries r
    join queries q on q.query_id = r.query_id
    where r.run_id = $run
),
sources as (
    select a.query_id, s.sequence_id
    from asked a
    join documents d on json_contains(d.metadata, a.truth)
    join sequences s on s.document_id = d.document_id
),
ranked as (
    select query_id, method, sequence_id, influence_rank as place
    from influences
    where run_id = $run
    union all
    select
        query_id,
        method || ' relative' as method,
        sequence_id,
        row_number() over (
            partition by query_id, method order by relative_influence desc nulls last, sequence_id
        ) as place
    from influences
    where run_id = $run and relative_influence is not null
),
asked_with_truth as (
    select distinct query_id
    from sources
),
methods as (
    select distinct method
    from ranked
)
select
    m.method,
    a.query_id,
    list(r.place order by r.place) filter (where s.sequence_id is not null and r.place is not null) as true_ranks
from methods m
cross join asked_with_truth a
left join ranked r on r.method = m.method and r.query_id = a.query_id
left join sources s on s.query_id = a.query_id and s.sequence_id = r.sequence_id
group by m.method, a.query_id
order by m.method, a.query_id
