-- grain: one row per (query, layer): where the head of the query's ranking acts
-- of all queries, or of the one that $query names
select q.query_id, p.layer, p.influence, p.share
from run_queries q, lateral (from layer_profile(q.query_id, run := $run)) p
where q.run_id = $run and ($query is null or q.query_id = $query)
order by q.query_id, p.layer
