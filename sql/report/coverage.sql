-- grain: one row per (query, share of its scored candidates): the part of the positive influence it holds
-- of all queries, or of the one that $query names
select q.query_id, c.top_share::double as top_share, c.n_sequences, c.share_of_positive_influence
from run_queries q, lateral (from coverage(q.query_id, run := $run)) c
where q.run_id = $run and ($query is null or q.query_id = $query)
order by q.query_id, c.top_share
