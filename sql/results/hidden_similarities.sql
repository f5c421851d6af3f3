-- grain: one row per (run, query, sequence, layer)
-- not a score: embedding_scores makes cosines of these
select $run_id as run_id, * exclude (run_id)
from staged_hidden_similarities
order by query_id, sequence_id, layer
