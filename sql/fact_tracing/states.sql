-- grain: one row per (pair of `pairs`, layer): inner product and lengths of mean hidden states
select p.pair, h.layer, h.dot, h.query_norm, h.sequence_norm
from hidden_similarities h
join pairs p on p.query_id = h.query_id and p.sequence_id = h.sequence_id
where h.run_id = $run
