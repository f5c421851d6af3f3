-- grain: one row per (retraining without a dataset, query) of one seed: what the query costs that model, in nats
-- not a difference: what it costs the model that was taught everything stands in `unlearnings`
select retraining, query_id, loss, seconds
from retrainings
where study_id = $study and kind = 'dataset' and seed = $seed and list_contains($retrainings, retraining)
order by retraining, query_id
