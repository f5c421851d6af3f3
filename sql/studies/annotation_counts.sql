-- grain: one row per (run, item): how many people found the sequence relevant to the query, and how many did not
-- of an item that nobody has answered both are 0
select
    run_id,
    model,
    method,
    query_id,
    item_id,
    is_spurious,
    count(*) filter (where is_relevant) as n_relevant,
    count(*) filter (where not is_relevant) as n_irrelevant
from annotated_sequences()
group by run_id, model, method, query_id, item_id, is_spurious
order by model, run_id, query_id, item_id
