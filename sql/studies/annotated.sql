-- grain: one row per (run, sequence, annotator) of one query, as people answered; not what nobody has answered
select
    model,
    run_id,
    influence_rank,
    sequence_id,
    influence,
    is_spurious,
    annotator,
    description,
    relationship,
    is_relevant
from annotated_sequences()
where query_id = $query and annotator is not null
order by model, run_id, influence_rank, annotator
