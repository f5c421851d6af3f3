-- grain: one row per (query, sequence, position), of each query's k most influential exactly scored sequences
with own as (
    select
        i.query_id,
        i.sequence_id,
        i.influence_rank,
        i.influence,
        row_number() over (partition by i.query_id order by i.influence_rank, i.sequence_id) as place
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run and i.exact and list_contains($queries, i.query_id)
)
select
    f.query_id,
    f.sequence_id,
    o.influence_rank,
    o.influence,
    f.position,
    f.token,
    f.update_influence,
    f.output_influence,
    f.input_influence
from token_forms(run := $run) f
join own o on o.query_id = f.query_id and o.sequence_id = f.sequence_id
where o.place <= $k
order by o.place, f.query_id, f.position
