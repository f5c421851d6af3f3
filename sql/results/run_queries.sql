-- grain: one row per (run, query): what was asked, and how well its compressed gradient kept the scores
-- sums and correlations take their rows in one order, so that a run that was interrupted ends in the same digits
with approximate as (
    select query_id, sequence_id, sum(influence::double order by module) as influence
    from staged_scored
    where method = $method
    group by query_id, sequence_id
),
exact as (
    select query_id, sequence_id, sum(influence order by module) as influence
    from staged_exact_layers
    group by query_id, sequence_id
),
agreement as (
    select e.query_id, nullif(corr(e.influence, a.influence order by sequence_id), 'nan'::double) as compression_correlation
    from exact e
    join approximate a using (query_id, sequence_id)
    group by e.query_id
),
counted as (
    select query_id, count(distinct sequence_id) as n_candidates
    from run_candidates
    group by query_id
)
select
    q.run_id,
    q.query_id,
    q.n_prompt_tokens,
    q.n_completion_tokens,
    q.log_probability,
    coalesce(c.n_candidates, 0) as n_candidates,
    a.compression_correlation
from staged_run_queries q
left join counted c using (query_id)
left join agreement a using (query_id)
order by q.query_id
