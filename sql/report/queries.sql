-- grain: one row per query of the run, with the sequence that raised it most
-- not the ranking: that is sql/report/sequences.sql
-- of all queries, or of the one that $query names
with best as (
    select i.query_id, i.sequence_id, i.influence, s.document_id
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    left join sequences s on s.sequence_id = i.sequence_id
    where i.run_id = $run and i.influence_rank = 1 and ($query is null or i.query_id = $query)
),
exact as (
    select query_id, count(*) as n_exact
    from influences
    where run_id = $run and exact and ($query is null or query_id = $query)
    group by query_id
),
residuals as (
    select query_id, max(rank) as rank, max(residual) as largest_residual
    from query_compressions
    where run_id = $run and ($query is null or query_id = $query)
    group by query_id
)
select
    q.query_id,
    a.prompt,
    a.completion,
    b.document_id as best_document_id,
    b.sequence_id as best_sequence_id,
    b.influence as best_influence,
    q.log_probability,
    q.n_prompt_tokens,
    q.n_completion_tokens,
    q.n_candidates,
    coalesce(e.n_exact, 0) as n_exact,
    q.compression_correlation,
    c.rank,
    c.largest_residual
from run_queries q
left join queries a on a.query_id = q.query_id
left join best b on b.query_id = q.query_id
left join exact e on e.query_id = q.query_id
left join residuals c on c.query_id = q.query_id
where q.run_id = $run and ($query is null or q.query_id = $query)
order by a.submitted_at, q.query_id
