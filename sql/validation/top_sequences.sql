-- grain: one row per (method, query, sequence) among the share of sequences that the method ranks first for the query
-- not a row per influence above some value: at least one sequence per method and query
with ranked as (
    select method, query_id, sequence_id, influence_rank, count(*) over (partition by method, query_id) as n_ranked
    from influences
    where run_id = $run and list_contains($queries, query_id)
)
select method, query_id, list(sequence_id order by sequence_id) as sequence_ids
from ranked
where influence_rank <= greatest(1, round($share * n_ranked))
group by method, query_id
order by method, query_id
