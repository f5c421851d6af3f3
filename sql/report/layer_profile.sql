-- grain: one row per (query, layer): where the head of the query's ranking acts
select q.query_id, p.layer, p.influence, p.share
from run_queries q, lateral (from layer_profile(q.query_id, run := $run)) p
where q.run_id = $run
order by q.query_id, p.layer
