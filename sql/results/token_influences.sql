-- grain: one row per (run, query, sequence, layer, position), for exactly scored sequences only
-- position predicts the next token: its influence is the credit of learning token position + 1
select
    $run_id as run_id,
    query_id,
    sequence_id,
    layer,
    position,
    token_id,
    token,
    influence
from staged_exact_tokens
order by query_id, sequence_id, layer, position
