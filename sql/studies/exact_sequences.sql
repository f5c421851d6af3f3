-- grain: one row per (query, sequence): a query's first k exactly scored sequences, and their tokens
-- not every exactly scored sequence: those that rank first by influence, whatever its sign
with own as (
    select
        i.query_id,
        i.sequence_id,
        row_number() over (partition by i.query_id order by i.influence_rank, i.sequence_id) as place
    from influences i
    join runs r on r.run_id = i.run_id and r.method = i.method
    where i.run_id = $run and i.exact and list_contains($queries, i.query_id)
),
tokens as (
    select distinct t.query_id, t.sequence_id, t.position, t.token_id
    from token_influences t
    join own o on o.query_id = t.query_id and o.sequence_id = t.sequence_id
    where t.run_id = $run and o.place <= $k
)
select o.query_id, o.sequence_id, o.place, list(t.token_id order by t.position) as token_ids
from own o
join tokens t on t.query_id = o.query_id and t.sequence_id = o.sequence_id
group by o.query_id, o.sequence_id, o.place
order by o.query_id, o.place
